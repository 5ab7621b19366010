"""Reader -> batches: reads, segments, augments and collates, reproducible by seed whatever the number of workers."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from data import augment as augmentation
from data.augment import AugmentSettings
from data.disk import DataGone, InputError
from data.frame import Batch, Frame, Reader, collate
from data.superpixels import SuperpixelSettings, load_or_compute
from data.workers import LESS_MEMORY, handed_over, leave_signals, results


def select(reader: Reader, rows: list[int]) -> "Selection":
    """The reader restricted to the frames at `rows`."""
    return Selection(reader, list(map(int, rows)))


class Selection:
    """A Reader of some frames of another."""

    def __init__(self, reader: Reader, rows: list[int]):
        self._reader, self._rows = reader, rows
        self.name, self.classes, self.intensity_offset = reader.name, reader.classes, reader.intensity_offset
        self.ids = [reader.ids[i] for i in rows]
        self.scenes = [reader.scenes[i] for i in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, images: bool = True, labels: bool = True, shrink: int = 1) -> Frame:
        """Frame `index` of the selection."""
        return self._reader.read(self._rows[index], images, labels, shrink)

    def image_files(self) -> list[tuple[str, Path]]:
        """Those of the whole reader."""
        return self._reader.image_files()


@dataclass
class _Frames(Dataset):
    """Item (epoch, index) -> a prepared frame, and (id, sentence) of those that could not be read on the way to it.

    The next frame stands in for one that cannot be read, so that batches keep their number and size; None after more
    of them than there may be. An InputError in place of the item if no other frame could stand in.
    """

    reader: Reader
    augment: AugmentSettings | None
    superpixels: tuple[Path, SuperpixelSettings] | None
    images: bool
    labels: bool
    shrink: int
    seed: int
    spared: int  # frames that may stay unread

    def __getitem__(self, item: tuple[int, int]) -> tuple[Frame | None, list[tuple[str, str]]] | InputError:
        epoch, index = item
        unread = []
        while len(unread) <= self.spared:
            try:
                return self._prepared(epoch, index), unread
            except DataGone as error:
                return error
            except MemoryError:
                return InputError(f"there is too little memory to prepare {self.reader.ids[index]}: {LESS_MEMORY}.")
            except InputError as error:
                unread.append((self.reader.ids[index], str(error)))
                index = (index + 1) % len(self.reader)
        return None, unread

    def _prepared(self, epoch: int, index: int) -> Frame:
        frame = self.reader.read(index, images=self.images, labels=self.labels, shrink=self.shrink)
        if self.superpixels:
            for view in frame.cameras:
                view.superpixels = load_or_compute(view, *self.superpixels)
        if self.augment is None:
            return frame
        rng = np.random.default_rng([self.seed, epoch, index])
        return augmentation.apply(frame, augmentation.draw(rng, frame, self.augment))


class _Steps(Sampler):
    """A list of (epoch, index) for each step: this process's share of the frames of that step, shuffled alike in all.

    Every frame comes once an epoch, in one of the processes. All take equally many steps in training: frames that would
    make a last step of fewer frames than processes join the step before. In evaluation nobody waits, and a process may
    be left without a frame.
    """

    def __init__(self, length: int, batch: int, seed: int, shuffle: bool, rank: int, world: int):
        self.length, self.seed, self.shuffle, self.rank, self.world = length, seed, shuffle, rank, world
        starts = list(range(0, length, max(1, batch // world) * world))
        if shuffle and len(starts) > 1 and length - starts[-1] < world:
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], length], strict=False))
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        for start, end in self.bounds[self.skip :]:
            share = order[start:end][self.rank :: self.world]
            if len(share):
                yield [(self.epoch, int(i)) for i in share]


class Loader:
    """Iterable of Batch; `set_epoch` before each epoch.

    unread: ids of the frames that could not be read so far, in any epoch.
    """

    def __init__(self, loader: DataLoader, steps: _Steps):
        self._loader, self._steps = loader, steps
        self.unread: set[str] = set()

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch whose order and augmentations come next, and how many of its steps to leave out."""
        self._steps.epoch, self._steps.skip = epoch, skip

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch, unread in results(self._loader):
            for name, sentence in unread:
                self._leave_out(name, sentence)
            yield batch

    def _leave_out(self, name: str, sentence: str) -> None:
        frames, spared = len(self._loader.dataset.reader), self._loader.dataset.spared
        known = name in self.unread
        self.unread.add(name)
        if len(self.unread) > spared == 0:
            raise InputError(sentence)
        if len(self.unread) > spared:
            raise InputError(
                f"{len(self.unread)} of {frames} frames cannot be read, more than --max_bad_frames allows; "
                f"the last: {sentence}"
            )
        if not known:
            tqdm.write(f"frame {name} is left out, its neighbour stands in for it: {sentence}", file=sys.stderr)


def make_loader(
    reader: Reader,
    *,
    batch: int,
    augment: AugmentSettings | None,
    superpixels: tuple[Path, SuperpixelSettings] | None,
    images: bool,
    labels: bool,
    workers: int,
    seed: int,
    shuffle: bool,
    shrink: int = 1,
    max_bad_frames: float = 0.0,
    pin: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """Batches of `batch` frames, those of all processes together; the last one may be smaller.

    Args:
        reader: where frames come from.
        augment: what to draw for each frame; None = frames as read.
        superpixels: folder and settings of the maps, made when missing; None = no maps.
        images, labels: whether to read them.
        workers: processes; 0 = this one.
        seed: of order and augmentations, with the epoch and the frame's index.
        shuffle: a new order each epoch.
        shrink: images are read at 1 / shrink of their size (`data.disk.read_image`).
        max_bad_frames: share of the frames that may be unreadable; each is named once on stderr, and the next frame
            stands in for it.
        pin: batches in page-locked memory, for a GPU.
        rank, world: which of how many processes this is.

    Raises InputError if processes that train cannot have equal shares of a batch. Iterating raises InputError for a
    frame that cannot be read beyond these, and for a worker that dies.
    """
    if shuffle and (batch % world or 0 < len(reader) < world):
        raise InputError(
            f"{world} processes cannot share a batch of {batch} of {len(reader)} frames; make --batch a multiple of "
            f"{world}, or start fewer."
        )
    steps = _Steps(len(reader), batch, seed, shuffle, rank, world)
    spared = min(int(max_bad_frames * len(reader)), len(reader) - 1)
    loader = DataLoader(
        _Frames(reader, augment, superpixels, images, labels, shrink, seed, spared),
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=partial(_together, intensity_offset=reader.intensity_offset),
        worker_init_fn=leave_signals,
        persistent_workers=workers > 0,
        pin_memory=pin,
    )
    return Loader(loader, steps)


def _together(
    items: list[tuple[Frame | None, list[tuple[str, str]]] | InputError], intensity_offset: float
) -> tuple[Batch | None, list[tuple[str, str]]] | InputError:
    if hopeless := [item for item in items if isinstance(item, InputError)]:
        return hopeless[0]
    frames, unread = zip(*items, strict=True)
    batch = None
    if None not in frames:
        try:
            batch = handed_over(collate(frames, intensity_offset))
        except InputError as error:
            return error
    return batch, [frame for some in unread for frame in some]
