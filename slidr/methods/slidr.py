"""SLidR: superpoints learn from the superpixels that a frozen image network sees (Sautier et al., CVPR 2022)."""

from dataclasses import replace

from data.datasets.dataset import DataSet
from data.frame import Batch, Needs
from slidr.config import Positive, WithSuperpixels, key
from slidr.losses import gathered_infonce, infonce
from slidr.methods.image_method import ImageMethod
from slidr.pooling import POOLING_BACKEND, pool_superpixels
from slidr.training.learner import Step


class SLidR(ImageMethod):
    """Points are pooled by superpixel; each superpoint finds its superpixel among all those of the batch.

    Section 3.2: a superpoint is the mean of the features of the points that fall into a superpixel; the superpixel is
    that of the projected teacher's features over all its pixels. Equation 1: InfoNCE from the former to the latter.
    """

    class Settings(ImageMethod.Settings, WithSuperpixels):
        """Distil a frozen image network into a lidar network, superpixel by superpixel (SLidR, section 3)."""

        temperature: Positive = key(0.07, "temperature of InfoNCE (eq. 1)")
        gather_negatives: bool = key(
            False, "several processes: the superpixels of all are negatives, not each one's own"
        )

    needs = Needs(cameras="all", superpixels=True)

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.maps = settings.superpixels_folder / dataset.name, settings.superpixel_settings()

    def forward(self, batch: Batch) -> Step:
        """InfoNCE from superpoints to superpixels."""
        points, voxels = self.student(batch)
        pixels = self.images(batch.images)
        pairs = replace(batch.pairs, point=voxels.inverse[batch.pairs.point])
        frame = batch.image_frame if self.settings.superpixel_ids == "frame" else None
        superpoints, superpixels = pool_superpixels(points, pixels, batch.superpixels, pairs, frame)
        contrast = gathered_infonce if self.settings.gather_negatives and self.training else infonce
        loss, accuracy = contrast(superpoints, superpixels, self.settings.temperature)
        return Step(loss, {"pairs": len(pairs), "superpixels": len(superpoints), "accuracy": accuracy})

    def describe(self) -> dict[str, str]:
        """The student, the teacher, the superpixels and how they are pooled."""
        maps = f"{self.maps[1]} in {self.maps[0]}"
        return super().describe() | {"superpixels": maps, "pooling": POOLING_BACKEND}
