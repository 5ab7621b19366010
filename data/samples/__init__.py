"""How one item of training is drawn and how items become a batch; one file a kind.

`single` is one frame, with or without images; `views` are independent views of one frame; `scans` are two registered
scans of one scene.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from data.files import InputError
from data.frame import Frame


class NothingToDraw(InputError):
    """No item can be drawn: another one would fail for the same reason."""


@dataclass
class Notes:
    """What happened while an item was drawn.

    unread: (frame, why) of frames that could not be read and that others stand in for.
    redrawn: how many times the item was drawn again because it was of no use.
    remarks: what else a user should know, by what it is about; of each the first is said, once.
    """

    unread: list[tuple[str, str]] = field(default_factory=list)
    redrawn: int = 0
    remarks: dict[str, str] = field(default_factory=dict)


def without_unmeasured(frame: Frame, notes: Notes) -> Frame:
    """The frame without the points that are NaN (`data.frame.measured`); a note says if there are any."""
    lost = np.isnan(frame.points[:, 0])
    if not lost.any():
        return frame
    notes.remarks["points"] = (
        f"{lost.sum()} of the {len(lost)} points of frame {frame.id} are NaN, infinite or beyond any lidar's range: "
        "the network does not see them, and where they have a label they count as wrong. More frames may have some."
    )
    return frame.select(~lost)


class Sample(Protocol):
    """Items by index. It is pickled into the workers that draw, so it holds no network.

    A batch has `.ids`, `.counts` (how many scans and images), `.to(device)`, `.pin_memory()` and `.share_memory_()`.
    """

    ids: list[str]  # of the items, in order

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: np.random.Generator) -> tuple[Any, Notes]:
        """Item `index`, with what `rng` draws. Raises InputError if it cannot be read, NothingToDraw if none can."""
        ...

    def collate(self, items: list) -> Any:
        """The batch of some items."""
        ...
