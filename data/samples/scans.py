"""Two scans of one scene, registered by their poses, and which of their points are the same place.

The numbers are those of the supplement, section C.2.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.spatial import cKDTree

from data import augment as augmentation
from data.augment import AugmentSettings
from data.datasets.dataset import Reader
from data.files import DataGone, InputError
from data.frame import Batch, Frame, Needs, collate
from data.samples import Notes, NothingToDraw, without_unmeasured

DRAWS = 100  # pairs that are tried for one item


@dataclass
class ScanPair:
    """Two scans of one scene and their matches."""

    first: Frame  # with its pose, as has the second
    second: Frame
    matches: np.ndarray  # [M, 2] int64: rows of the points of both that are the same place; the first's ascend


@dataclass
class ScanBatch:
    """Several pairs of scans as tensors."""

    first: Batch
    second: Batch
    matches: torch.Tensor  # [M, 2] int64: rows of `first.points` and of `second.points`

    @property
    def ids(self) -> list[str]:
        """Ids of all scans, pair by pair."""
        return [name for pair in zip(self.first.ids, self.second.ids, strict=True) for name in pair]

    @property
    def counts(self) -> dict[str, int]:
        """How many scans there are, both of each pair; no images."""
        return {"scans": len(self.ids), "images": 0}

    def to(self, device: torch.device | str) -> "ScanBatch":
        """The same pairs on `device`."""
        return self._with(lambda part: part.to(device, non_blocking=True) if torch.is_tensor(part) else part.to(device))

    def pin_memory(self) -> "ScanBatch":
        """The same pairs in memory from which a GPU copies while it computes (called by torch's DataLoader)."""
        return self._with(lambda part: part.pin_memory())

    def share_memory_(self) -> "ScanBatch":
        """The same pairs in memory that other processes see. Raises RuntimeError if there is too little of it."""
        return self._with(lambda part: part.share_memory_())

    def _with(self, move: Callable) -> "ScanBatch":
        return ScanBatch(move(self.first), move(self.second), move(self.matches))


@dataclass
class Scans:
    """Pairs of keyframes of one scene; an epoch has as many items as there are keyframes with a partner.

    The pair of an item is drawn from all pairs of the split: fifty epochs see as many pairs as the same epochs of
    single frames see frames. A pair with too few matches is drawn again, as is one with a scan that cannot be read.

    Args:
        reader: where scans and poses come from; images are never opened.
        augment: what is drawn for each of the two scans by itself; None = scans as read.
        min_distance, max_distance: metres between the places of the two scans; max_distance None = any.
        match_distance: metres; a point's match is its nearest neighbour in the other scan if it is closer than this.
        min_matches: matches of the scans as read, before any are cut away.

    Raises InputError if the split has no such pair, or no poses.
    """

    reader: Reader
    augment: AugmentSettings | None = None
    min_distance: float = 10.0
    max_distance: float | None = None
    match_distance: float = 0.1
    min_matches: int = 1024
    pairs: np.ndarray = field(init=False, repr=False)  # [P, 2] int32 frames of the reader, the earlier one first
    ids: list[str] = field(init=False, repr=False)  # of the keyframes with a partner

    def __post_init__(self):
        self.pairs = distant_pairs(self.reader, self.min_distance, self.max_distance)
        self.ids = [self.reader.ids[i] for i in np.unique(self.pairs)]

    def __len__(self) -> int:
        return len(self.ids)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[ScanPair, Notes]:
        """A pair with enough matches; which one depends on `rng` alone.

        Raises NothingToDraw if DRAWS pairs were of no use.
        """
        notes, most = Notes(), 0
        for _ in range(DRAWS):
            frames = self._read(self.pairs[rng.integers(len(self.pairs))], notes)
            if frames is None:
                continue
            matches = find_matches(*frames, self.match_distance)
            if len(matches) >= self.min_matches:
                return self._augmented(frames, matches, rng), notes
            notes.redrawn, most = notes.redrawn + 1, max(most, len(matches))
        if not notes.redrawn:
            raise NothingToDraw(notes.unread[-1][1])
        raise NothingToDraw(
            f"of {self.describe()}, {notes.redrawn} were drawn, and none has {self.min_matches:,} points within "
            f"{self.match_distance:g} m of each other (at most {most:,}): lower --min_distance, --max_distance or "
            "--min_matches, or see whether the poses are right."
        )

    def _read(self, rows: np.ndarray, notes: Notes) -> list[Frame] | None:
        """The frames at `rows`; None, and a note, if one cannot be read."""
        frames = []
        for row in map(int, rows):
            try:
                frames.append(without_unmeasured(self.reader.read(row, Needs(pose=True)), notes))
            except DataGone:
                raise
            except InputError as error:
                notes.unread.append((self.reader.ids[row], str(error)))
                return None
        return frames

    def _augmented(self, frames: list[Frame], matches: np.ndarray, rng: np.random.Generator) -> ScanPair:
        """Each scan moved and cut by itself; the matches of which both points are left."""
        if self.augment is None:
            return ScanPair(*frames, matches)
        drawn = [augmentation.draw(rng, frame, self.augment) for frame in frames]
        kept = [augmentation.kept(frame, d) for frame, d in zip(frames, drawn, strict=True)]
        matches = matches[kept[0][matches[:, 0]] & kept[1][matches[:, 1]]]
        new_row = [np.cumsum(stays) - 1 for stays in kept]
        matches = np.stack([new_row[side][matches[:, side]] for side in (0, 1)], 1)
        return ScanPair(*map(augmentation.apply, frames, drawn), matches)

    def collate(self, items: list[ScanPair]) -> ScanBatch:
        """The pairs as one batch."""
        first, second = (
            collate([getattr(item, side) for item in items], self.reader.intensity_offset, self.reader.intensity_scale)
            for side in ("first", "second")
        )
        lengths = np.array([(len(item.first.points), len(item.second.points)) for item in items])
        starts = np.cumsum(lengths, 0) - lengths
        matches = np.concatenate([item.matches + start for item, start in zip(items, starts, strict=True)])
        return ScanBatch(first, second, torch.from_numpy(matches))

    def describe(self) -> str:
        """How many pairs there are, and how far apart."""
        return (
            f"{len(self.pairs):,} pairs of {len(self):,} keyframes, {_span(self.min_distance, self.max_distance)} apart"
        )


def find_matches(first: Frame, second: Frame, distance: float) -> np.ndarray:
    """The points of `first` that have a neighbour in `second`, and the nearest one of each: rows `[M, 2]` int64.

    Args:
        first, second: frames with poses into one world.
        distance: metres; neighbours must be closer than this.
    """
    motion = np.linalg.inv(second.pose) @ first.pose
    places = first.points[:, :3] @ motion[:3, :3].T + motion[:3, 3]
    nearest = cKDTree(second.points[:, :3]).query(places, distance_upper_bound=distance)[1]
    rows = np.flatnonzero(nearest < len(second.points))  # a point without a neighbour has this number
    return np.stack([rows, nearest[rows]], 1)


def distant_pairs(reader: Reader, min_distance: float, max_distance: float | None) -> np.ndarray:
    """All pairs of frames of one scene whose scans were taken so far apart: `[P, 2]` int32, rows ascend.

    Distances are in metres, ends included; no upper one for None. Raises InputError if there is no such pair.
    """
    places = np.array([reader.pose(i)[:3, 3] for i in range(len(reader))])
    scenes = defaultdict(list)
    for row, scene in enumerate(reader.scenes):
        scenes[scene].append(row)
    pairs, least, most = [], np.inf, -np.inf
    for rows in map(np.array, scenes.values()):
        for i, row in enumerate(rows[:-1]):  # one by one: a sequence of KITTI has ten million pairs
            later = rows[i + 1 :]
            distance = np.linalg.norm(places[later] - places[row], axis=1)
            least, most = min(least, distance.min()), max(most, distance.max())
            partners = later[(distance >= min_distance) & (distance <= (max_distance or np.inf))]
            pairs.append(np.stack([np.full_like(partners, row), partners], 1).astype(np.int32))
    name = reader.dataset.name
    if not pairs:
        raise InputError(
            f"every scene of this split of {name} has one keyframe only, and pairs of scans are of one scene: choose "
            "another split or data set."
        )
    pairs = np.concatenate(pairs)
    if not len(pairs):
        raise InputError(
            f"no two keyframes of one scene of {name} are {_span(min_distance, max_distance)} apart (theirs are "
            f"{least:.1f} to {most:.1f} m apart): change --min_distance or --max_distance."
        )
    return pairs


def _span(low: float, high: float | None) -> str:
    return f"{low:g} m or more" if high is None else f"{low:g} to {high:g} m"
