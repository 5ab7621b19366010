"""The contract of a task: what a pretrained network is tried on."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from data.datasets import open_reader
from data.datasets.dataset import Reader
from data.files import InputError
from data.frame import Frame, Needs
from slidr.config import WithData
from slidr.tasks.scores import Scores
from slidr.training import distributed


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


def first_that_reads(reader: Reader, needs: Needs) -> Frame | None:
    """The first frame that can be read; None if there is no frame. Raises InputError if ten in a row cannot be."""
    for index in range(len(reader)):
        try:
            return reader.read(index, needs)
        except InputError:  # one bad frame is for `max_bad_frames` to judge
            if index + 1 == min(10, len(reader)):
                raise
    return None


def open_annotated(settings: WithData, split: str, annotated: Callable[[Reader], Reader], what: str) -> Reader:
    """The frames of a split that are `annotated`, with `what` (labels, boxes); InputError if there are none."""
    with distributed.first_goes_first():
        reader = open_reader(settings.dataset, settings.root, split, settings.read_options())
    reader = annotated(reader)
    if not len(reader):
        raise InputError(f"the split `{split}` of {settings.dataset} has no {what}; choose another split.")
    return reader


def read_with_image(reader: Reader, index: int, needs: Needs) -> Frame:
    """Frame `index` to be drawn, with its first camera; tasks of points do without it where it cannot be read."""
    try:
        return reader.read(index, replace(needs, cameras=1))
    except InputError as error:
        print(f"no camera view of {reader.ids[index]}: {error}")
        return reader.read(index, needs)
