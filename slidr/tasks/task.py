"""The contract of a task: what a pretrained network is tried on."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from data.datasets.dataset import Reader
from data.files import InputError
from data.frame import Frame, Needs
from slidr.tasks.scores import Scores


class Task(Protocol):
    """A network on a split: what must be read of a frame, how well the network does, and what that looks like.

    A task holds its network and the split's reader. Where it is trained, a `slidr.training.Learner` does that and uses
    the same network (`slidr.tasks.learner`). Its settings are those of its stage, published figures stand in
    published.yaml.
    """

    needs: Needs

    def evaluate(self, loader: Iterable) -> Scores:
        """Scores over the loader's batches, those of all processes together."""
        ...

    def draw(self, index: int, folder: Path, name: str) -> list[str]:
        """Draw frame `index` of the split; the names of the pictures in `folder`, which contain `name`."""
        ...


def read_with_image(reader: Reader, index: int, needs: Needs) -> Frame:
    """Frame `index` to be drawn, with its first camera; tasks of points do without it where it cannot be read."""
    try:
        return reader.read(index, replace(needs, cameras=1))
    except InputError as error:
        print(f"no camera view of {reader.ids[index]}: {error}")
        return reader.read(index, needs)
