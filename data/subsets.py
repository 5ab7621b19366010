"""A share of a split's labels: every n-th scene or frame, a seeded draw, or a list that somebody published."""

import math
from pathlib import Path

import numpy as np

from data.boxes import Boxes
from data.datasets.dataset import Reader
from data.files import InputError, read_text, write_text
from data.frame import Frame, Needs


def select(reader: Reader, rows: list[int]) -> "Selection":
    """The reader restricted to the frames at `rows`."""
    return Selection(reader, list(map(int, rows)))


class Selection:
    """A Reader of some frames of another."""

    def __init__(self, reader: Reader, rows: list[int]):
        self._reader, self._rows, self.dataset = reader, rows, reader.dataset
        self.intensity_scale, self.intensity_offset = reader.intensity_scale, reader.intensity_offset
        self.ids = [reader.ids[i] for i in rows]
        self.scenes = [reader.scenes[i] for i in rows]

    @property
    def labelled(self) -> list[bool]:
        """Which frames of the selection have labels."""
        there = labelled(self._reader)
        return [there[i] for i in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, needs: Needs, rng: np.random.Generator | None = None) -> Frame:
        """Frame `index` of the selection (see `Reader.read`)."""
        return self._reader.read(self._rows[index], needs, rng)

    def pose(self, index: int) -> np.ndarray:
        """Where frame `index` of the selection was taken (see `Reader.pose`)."""
        return self._reader.pose(self._rows[index])

    def image_boxes(self, frame_id: str, boxes: Boxes) -> np.ndarray:
        """Where boxes are in the image of a frame (see `BoxReader.image_boxes`)."""
        return self._reader.image_boxes(frame_id, boxes)

    def image_files(self) -> list[tuple[str, Path]]:
        """(token, file) of every camera image of the whole reader."""
        return self._reader.image_files()


def labelled(reader: Reader) -> list[bool]:
    """Which frames of a reader have labels, as far as it knows without opening them."""
    return getattr(reader, "labelled", None) or [True] * len(reader)


def every_nth(items: int, pct: float) -> list[int]:
    """Indices of `pct` per cent of `items`, evenly from the first on: 1 % takes every 100th (published code)."""
    return [math.floor(k * 100 / pct) for k in range(math.ceil(items * pct / 100 - 1e-9))]


def choose_subset(reader: Reader, pct: float, subset: str, seed: int | None = None) -> Selection:
    """The reader restricted to a subset of its frames, in the reader's order.

    Args:
        reader: a whole split.
        pct: per cent of the scenes or frames, 0 < pct <= 100.
        subset: "scenes", "frames", or the path of a list as `write_subset` writes it; then `pct` plays no part.
        seed: None = every n-th; else as many drawn by this seed, those of 1 % being among those of 10 %.

    Raises InputError if nothing is left, or if the list names what the reader does not have.
    """
    if subset not in ("scenes", "frames"):
        return select(reader, _listed(reader, Path(subset)))
    items = list(dict.fromkeys(reader.scenes)) if subset == "scenes" else reader.ids
    chosen = every_nth(len(items), pct)
    if seed is not None:
        chosen = np.random.default_rng(seed).permutation(len(items))[: len(chosen)]
    kept = {items[i] for i in chosen}
    rows = [i for i, name in enumerate(reader.scenes if subset == "scenes" else reader.ids) if name in kept]
    if not rows:
        raise InputError(f"{pct:g} % of the {subset} of {reader.dataset.name} leave no frame; raise --pct.")
    return select(reader, rows)


def _listed(reader: Reader, path: Path) -> list[int]:
    """Rows of the frames in a list."""
    if not path.is_file():
        raise InputError(f"`subset` cannot be '{path}': it is scenes, frames, or a file with a frame id a line.")
    lines = (line.strip() for line in read_text(path).splitlines())
    wanted = {line for line in lines if line and not line.startswith("#")}
    if not wanted:
        raise InputError(f"{path} names no frame; write one frame id a line.")
    if strange := sorted(wanted - set(reader.ids)):
        raise InputError(
            f"{path} names {len(strange)} frames that this split of {reader.dataset.name} does not have, the first is "
            f"`{strange[0]}`; choose the list's own data set and split."
        )
    return [i for i, name in enumerate(reader.ids) if name in wanted]


def write_subset(path: Path, reader: Reader, remark: str) -> None:
    """Write the reader's frame ids, one a line under a comment, so that `choose_subset` finds them again."""
    write_text(path, "\n".join([f"# {remark}", *reader.ids]) + "\n")
