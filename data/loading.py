"""Reader -> batches: reads, segments, augments and collates, reproducible by seed whatever the number of workers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from data import augment as augmentation
from data.augment import AugmentSettings
from data.disk import InputError
from data.frame import Batch, Frame, Reader, collate
from data.superpixels import SuperpixelSettings, load_or_compute


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

    def read(self, index: int, images: bool = True, labels: bool = True) -> Frame:
        """Frame `index` of the selection."""
        return self._reader.read(self._rows[index], images, labels)

    def image_files(self) -> list[tuple[str, Path]]:
        """Those of the whole reader."""
        return self._reader.image_files()


@dataclass
class _Frames(Dataset):
    """Item (epoch, index) -> a prepared Frame, or the InputError that reading it raised."""

    reader: Reader
    augment: AugmentSettings | None
    superpixels: tuple[Path, SuperpixelSettings] | None
    images: bool
    labels: bool
    seed: int

    def __getitem__(self, item: tuple[int, int]) -> Frame | InputError:
        epoch, index = item
        try:
            frame = self.reader.read(index, images=self.images, labels=self.labels)
            if self.superpixels:
                for view in frame.cameras:
                    view.superpixels = load_or_compute(view, *self.superpixels)
        except InputError as error:
            return error  # raised by the parent: an exception would arrive as a traceback's text
        if self.augment is None:
            return frame
        rng = np.random.default_rng([self.seed, epoch, index])
        return augmentation.apply(frame, augmentation.draw(rng, frame, self.augment))


class _Order(Sampler):
    """(epoch, index) of every frame of this process; shuffled alike in all processes."""

    def __init__(self, length: int, seed: int, shuffle: bool, rank: int, world: int):
        self.length, self.seed, self.shuffle, self.rank, self.world = length, seed, shuffle, rank, world
        # processes that train must take equally many steps; those that evaluate must see each frame once
        self.end = length - length % world if shuffle else length
        self.epoch = 0

    def __len__(self) -> int:
        return len(range(self.rank, self.end, self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return iter([(self.epoch, int(i)) for i in order[self.rank : self.end : self.world]])


class Loader:
    """Iterable of Batch; `set_epoch` before each epoch."""

    def __init__(self, loader: DataLoader, order: _Order):
        self._loader, self._order = loader, order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentations come next."""
        self._order.epoch = epoch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # else the error's traceback and this frame keep each other, and the workers, alive
            yield batch


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
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """Batches of `batch` frames; the last one may be smaller.

    Args:
        reader: where frames come from.
        augment: what to draw for each frame; None = frames as read.
        superpixels: folder and settings of the maps, made when missing; None = no maps.
        images, labels: whether to read them.
        workers: processes; 0 = this one.
        seed: of order and augmentations, with the epoch and the frame's index.
        shuffle: a new order each epoch.
        rank, world: this process's share of the frames. Shuffled shares are equally large: up to world - 1 frames
            are left out, others each epoch.

    Iterating raises InputError for a frame that cannot be read.
    """
    order = _Order(len(reader), seed, shuffle, rank, world)

    loader = DataLoader(
        _Frames(reader, augment, superpixels, images, labels, seed),
        batch_size=batch,
        sampler=order,
        num_workers=workers,
        collate_fn=partial(_together, intensity_offset=reader.intensity_offset),
        persistent_workers=workers > 0,
    )
    return Loader(loader, order)


def _together(frames: list[Frame | InputError], intensity_offset: float) -> Batch | InputError:
    try:
        return next((f for f in frames if isinstance(f, InputError)), None) or collate(frames, intensity_offset)
    except InputError as error:
        return error
