"""Independent views of one scan: each is drawn and augmented on its own.

Parameters are drawn in one place and applied in another, as in data.augment. The augmentations are those of Zhang et
al. (ICCV 2021) for lidar, without their box in front of the car: a scan is used all around.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from data.datasets.dataset import Reader
from data.files import InputError
from data.frame import Batch, Frame, Needs, collate
from data.samples import Notes, without_unmeasured

TRIES = 100  # draws of a box before the last one is taken as it is

Corners = tuple[np.ndarray, np.ndarray]  # lower, upper


@dataclass(frozen=True)
class ViewSettings:
    """What to draw for a view.

    kept: smallest and largest side of the box that is kept, as a share of the cloud's range in x and in y.
    aspect: the shorter side of that box divided by the longer, at least.
    enough: points that it holds, at least (more than these).
    dropped: side of the cuboid that is dropped, as a share of the range of what is left.
    angle: largest rotation about z, either way, in degrees.
    scale: smallest and largest factor on all coordinates.
    far: metres from the sensor from which on no point is left out where a number of points is asked for.
    """

    kept: tuple[float, float] = (0.5, 1.0)
    aspect: float = 0.75
    enough: int = 10_000
    dropped: float = 0.2
    angle: float = 45.0
    scale: tuple[float, float] = (0.95, 1.05)
    far: float = 40.0


@dataclass(frozen=True)
class View:
    """One draw: what happens to a cloud, in the order of the fields."""

    box: Corners | None = None  # `[2]` each, in x and y: what lies outside is dropped
    cuboid: Corners | None = None  # `[3]` each: what lies inside is dropped
    flip_y: bool = False  # y changes its sign
    angle: float = 0.0  # radians about z
    scale: float = 1.0
    rows: np.ndarray | None = None  # of what is left, some of them perhaps several times; None = all


def draw(rng: np.random.Generator, points: np.ndarray, settings: ViewSettings, count: int | None = None) -> View:
    """Parameters for `points [N, 4]`, N > 0, of which at least one is always left.

    Args:
        count: points of the view; None = as many as are left.
    """
    box = _draw_box(rng, points, settings)
    left = points[_inside(points, box)]
    half = settings.dropped * np.array([np.ptp(left[:, i]) for i in range(3)]) / 2
    centre = left[rng.integers(len(left)), :3]
    view = View(
        box=box,
        cuboid=(centre - half, centre + half),
        flip_y=bool(rng.random() < 0.5),
        angle=math.radians(rng.uniform(-settings.angle, settings.angle)),
        scale=rng.uniform(*settings.scale),
    )
    if count is None:
        return view
    distance = np.linalg.norm(apply(points, view)[:, :3], axis=1)
    return replace(view, rows=_draw_rows(rng, distance >= settings.far, count))


def apply(points: np.ndarray, view: View) -> np.ndarray:
    """A new cloud `[M, 4]` float32 of `points [N, 4]`; the intensity stays."""
    if view.box is not None:
        points = points[_inside(points, view.box)]
    if view.cuboid is not None:
        points = points[~_inside(points, view.cuboid, borders=False)]
    c, s, flip = math.cos(view.angle), math.sin(view.angle), -1 if view.flip_y else 1
    matrix = view.scale * np.array([[c, -s * flip, 0], [s, c * flip, 0], [0, 0, 1]])
    moved = points.copy()
    moved[:, :3] = points[:, :3] @ matrix.T.astype(np.float32)
    return moved if view.rows is None else moved[view.rows]


def _draw_box(rng: np.random.Generator, points: np.ndarray, settings: ViewSettings) -> Corners:
    """A box around a random point. If no draw has the asked aspect, or enough points, the last one counts."""
    reach = np.array([np.ptp(points[:, i]) for i in range(2)])
    for _ in range(TRIES if len(points) > settings.enough else 1):
        sides = reach * rng.uniform(*settings.kept, (TRIES, 2))
        fits = np.flatnonzero(sides.min(1) >= settings.aspect * sides.max(1))
        half = sides[fits[0] if len(fits) else -1] / 2
        centre = points[rng.integers(len(points)), :2]
        box = centre - half, centre + half
        if np.count_nonzero(_inside(points, box)) > settings.enough:
            break
    return box


def _draw_rows(rng: np.random.Generator, far: np.ndarray, count: int) -> np.ndarray:
    """`count` rows in random order: as many far ones as fit, then near ones; all of them in turn if there are fewer."""
    rows = rng.permutation(len(far))
    rows = np.concatenate((rows[far[rows]], rows[~far[rows]]))
    return rng.permutation(np.resize(rows, count))


def _inside(points: np.ndarray, corners: Corners, borders: bool = True) -> np.ndarray:
    """Which points lie between two corners `[2]` or `[3]`; with their `borders`, the centre always does."""
    less = np.less_equal if borders else np.less
    return np.logical_and.reduce(
        [less(low, points[:, i]) & less(points[:, i], high) for i, (low, high) in enumerate(zip(*corners, strict=True))]
    )


@dataclass
class ViewsBatch:
    """The same scans in several views, each a Batch of its own: `batch["name"]`."""

    views: dict[str, Batch]

    def __getitem__(self, name: str) -> Batch:
        return self.views[name]

    @property
    def ids(self) -> list[str]:
        """Ids of the scans."""
        return next(iter(self.views.values())).ids

    @property
    def counts(self) -> dict[str, int]:
        """How many scans and images there are, for the log's rates."""
        return {"scans": len(self.ids), "images": 0}

    def to(self, device: torch.device | str) -> "ViewsBatch":
        """The same batch on `device`."""
        return self._with(lambda view: view.to(device))

    def pin_memory(self) -> "ViewsBatch":
        """The same batch in memory from which a GPU copies while it computes (called by torch's DataLoader)."""
        return self._with(Batch.pin_memory)

    def share_memory_(self) -> "ViewsBatch":
        """The same batch in memory that other processes see. Raises RuntimeError if there is too little of it."""
        return self._with(Batch.share_memory_)

    def _with(self, move: Callable[[Batch], Batch]) -> "ViewsBatch":
        return ViewsBatch({name: move(view) for name, view in self.views.items()})


@dataclass
class Views:
    """Several views of a scan.

    Args:
        reader: where scans come from.
        views: name -> number of points of that view; None = all that are left of the scan. A number makes all clouds of
            a batch equally long: a network on points sees them as one tensor.
        augment: what to draw for each view.
        most: points of a scan that are used, drawn at random before all else.
    """

    reader: Reader
    views: Mapping[str, int | None]
    augment: ViewSettings = field(default_factory=ViewSettings)
    most: int = 50_000

    @property
    def ids(self) -> list[str]:
        """Ids of the scans."""
        return self.reader.ids

    def __len__(self) -> int:
        return len(self.reader)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[dict[str, Frame], Notes]:
        """Scan `index` in each view. Raises InputError for files that cannot be used, and for a scan without points."""
        notes = Notes()
        frame = without_unmeasured(self.reader.read(index, Needs(), rng), notes)
        if len(frame.points) == 0:
            raise InputError(f"the scan {frame.id} has no points: remove it, or fetch it again.")
        points = frame.points
        if len(points) > self.most:
            points = points[rng.permutation(len(points))[: self.most]]
        drawn = {name: draw(rng, points, self.augment, count) for name, count in self.views.items()}
        return {name: replace(frame, points=apply(points, view)) for name, view in drawn.items()}, notes

    def collate(self, items: list[dict[str, Frame]]) -> ViewsBatch:
        """The scans as one batch."""
        meaning = self.reader.intensity_offset, self.reader.intensity_scale
        return ViewsBatch({name: collate([item[name] for item in items], *meaning) for name in self.views})
