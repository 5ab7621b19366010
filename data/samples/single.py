"""One frame an item, with or without images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import augment as augmentation
from data.augment import AugmentSettings
from data.datasets.dataset import Reader
from data.frame import Batch, Frame, Needs, collate
from data.samples import Notes, without_unmeasured
from data.superpixels import SuperpixelSettings, load_or_compute, require_maps


@dataclass
class Single:
    """A frame with what is needed of it, augmented. Without augmentation it keeps every row, also of points not seen.

    Args:
        reader: where frames come from.
        needs: what is read of each.
        augment: what to draw for each frame; None = frames as read.
        superpixels: folder and settings of the maps, made when missing; needed if `needs` names superpixels.

    Raises InputError if the maps should have been made by others, and there are none.
    """

    reader: Reader
    needs: Needs
    augment: AugmentSettings | None = None
    superpixels: tuple[Path, SuperpixelSettings] | None = None

    def __post_init__(self):
        if self.needs.superpixels:
            require_maps(*self.superpixels)

    @property
    def ids(self) -> list[str]:
        """Ids of the frames."""
        return self.reader.ids

    def __len__(self) -> int:
        return len(self.reader)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[Frame, Notes]:
        """Frame `index`. Raises InputError for files that cannot be used."""
        frame, notes = self.reader.read(index, self.needs, rng), Notes()
        if self.needs.superpixels:
            for view in frame.cameras:
                view.superpixels = load_or_compute(view, *self.superpixels, notes.remarks)
        seen = without_unmeasured(frame, notes)
        if self.augment is not None:
            frame = augmentation.apply(seen, augmentation.draw(rng, seen, self.augment))
        return frame, notes

    def collate(self, items: list[Frame]) -> Batch:
        """The frames as one Batch."""
        return collate(items, self.reader.intensity_offset, self.reader.intensity_scale)
