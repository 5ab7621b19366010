"""Sample -> batches, reproducible by seed whatever the number of workers."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from data.files import DataGone, InputError
from data.samples import Notes, NothingToDraw, Sample
from data.workers import LESS_MEMORY, handed_over, leave_signals, require_files, results


@dataclass
class _Items(Dataset):
    """(epoch, index) -> an item, and notes on how it was drawn.

    The next item stands in for one that cannot be read, so that batches keep their number and size; None after more
    of them than there may be. An InputError in place of the item if no other could stand in.
    """

    sample: Sample
    seed: int
    tolerated: int  # frames that may stay unread

    def __getitem__(self, place: tuple[int, int]) -> tuple[object | None, Notes] | InputError:
        epoch, index = place
        unread = []
        while len(unread) <= self.tolerated:
            try:
                item, notes = self.sample.draw(index, np.random.default_rng([self.seed, epoch, index]))
                return item, replace(notes, unread=unread + notes.unread)
            except (DataGone, NothingToDraw) as error:
                return error
            except MemoryError:
                return InputError(f"there is too little memory to prepare {self.sample.ids[index]}: {LESS_MEMORY}.")
            except InputError as error:
                unread.append((self.sample.ids[index], str(error)))
                index = (index + 1) % len(self.sample)
        return None, Notes(unread)


class _Steps(Sampler):
    """A list of (epoch, index) for each step: this process's share of the items of that step, shuffled alike in all.

    Every item comes once an epoch, in one of the processes. All take equally many steps in training: items that would
    make a last step of fewer items than processes join the step before. In evaluation processes do not wait for each
    other, and one may be left without an item.
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
    """Iterable of batches; `set_epoch` before each epoch.

    unread: ids of the frames that could not be read so far, in any epoch.
    redrawn: how many items were drawn again so far.
    """

    def __init__(self, loader: DataLoader, steps: _Steps):
        self._loader, self._steps = loader, steps
        self.unread: set[str] = set()
        self.redrawn = 0
        self._said: set[str] = set()

    @property
    def items(self) -> int:
        """Items an epoch, those of all processes together."""
        return self._steps.length

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch whose order and augmentations come next, and how many of its steps to leave out."""
        self._steps.epoch, self._steps.skip = epoch, skip

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator:
        for batch, notes in results(self._loader):
            for note in notes:
                self.redrawn += note.redrawn
                for name, sentence in note.unread:
                    self._leave_out(name, sentence)
                for about, sentence in note.remarks.items():
                    if about not in self._said:
                        tqdm.write(sentence, file=sys.stderr)
                    self._said.add(about)
            yield batch

    def _leave_out(self, name: str, sentence: str) -> None:
        tolerated = self._loader.dataset.tolerated
        known = name in self.unread
        self.unread.add(name)
        if len(self.unread) > tolerated == 0:
            raise InputError(sentence)
        if len(self.unread) > tolerated:
            raise InputError(
                f"{len(self.unread)} of {self.items} frames cannot be read, more than --max_bad_frames allows; "
                f"the last: {sentence}"
            )
        if not known:
            tqdm.write(f"frame {name} is left out, another stands in for it: {sentence}", file=sys.stderr)


def make_loader(
    sample: Sample,
    *,
    batch: int,
    workers: int,
    seed: int,
    shuffle: bool,
    max_bad_frames: float = 0.0,
    pin: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """Batches of `batch` items, those of all processes together; the last one may be smaller.

    Args:
        sample: how items are drawn and collated.
        workers: processes that do so; 0 = this one.
        seed: of order and draws, with the epoch and the item's index.
        shuffle: a new order each epoch.
        max_bad_frames: share of the items that may be unreadable; each is named once on stderr, and the next one
            stands in for it.
        pin: batches in page-locked memory, for a GPU.
        rank, world: which of how many processes this is.

    Raises InputError if processes that train cannot have equal shares of a batch. Iterating raises InputError for an
    item that cannot be read beyond these, and for a worker that dies.
    """
    if shuffle and (batch % world or 0 < len(sample) < world):
        raise InputError(
            f"{world} processes cannot share a batch of {batch} of {len(sample)} frames; make --batch a multiple of "
            f"{world}, or start fewer."
        )
    require_files(workers)
    steps = _Steps(len(sample), batch, seed, shuffle, rank, world)
    tolerated = min(int(max_bad_frames * len(sample)), len(sample) - 1)
    loader = DataLoader(
        _Items(sample, seed, tolerated),
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=partial(_together, sample),
        worker_init_fn=leave_signals,
        persistent_workers=workers > 0,
        pin_memory=pin,
    )
    return Loader(loader, steps)


def _together(
    sample: Sample, drawn: list[tuple[object | None, Notes] | InputError]
) -> tuple[object | None, list[Notes]] | InputError:
    if hopeless := [item for item in drawn if isinstance(item, InputError)]:
        return hopeless[0]
    items, notes = map(list, zip(*drawn, strict=True))
    if any(item is None for item in items):
        return None, notes
    try:
        return handed_over(sample.collate(items)), notes
    except InputError as error:
        return error
