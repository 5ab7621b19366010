"""ST-SLidR: SLidR that tolerates superpixels of one meaning and balances rare ones (Mahmoud et al., CVPR 2023)."""

from dataclasses import replace
from typing import Literal

import torch
from torch.nn import functional as F

from data.datasets.dataset import DataSet
from data.frame import Batch, Needs
from slidr.config import Positive, Share, WithSuperpixels, key
from slidr.losses import rarity, tolerant_infonce
from slidr.methods.image_method import ImageMethod
from slidr.pooling import POOLING_BACKEND, coarse_means, pool_superpixels
from slidr.training.learner import Step


class STSLidR(ImageMethod):
    """SLidR's contrast, informed by how alike the frozen teacher finds the superpixels of the batch.

    Those most like a superpoint's own are none of its negatives; superpixels like few others weigh more in the loss.
    """

    class Settings(ImageMethod.Settings, WithSuperpixels):
        """Distil an image network by superpixels, tolerating those of one meaning (ST-SLidR, CVPR 2023)."""

        temperature: Positive = key(0.07, "temperature of InfoNCE")
        tolerance: Share = key(0.01, "share of the superpixels of a batch, the most alike, that are no negatives")
        excluded: Literal["zeroed", "masked"] = key(
            "zeroed", "logits of excluded negatives: zeroed = 0, as the published code has it; masked = none, as meant"
        )
        balance: bool = key(True, "superpixels like few others weigh more")
        alike: Share = key(0.5, "balance: least cosine of two superpixels that counts as alike")

    needs = Needs(cameras="all", superpixels=True)

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.maps = settings.superpixels_folder / dataset.name, settings.superpixel_settings()

    def forward(self, batch: Batch) -> Step:
        """InfoNCE from superpoints to superpixels, tolerant and balanced."""
        s = self.settings
        points, voxels = self.student(batch)
        features = self.images.teacher(batch.images)
        pairs = replace(batch.pairs, point=voxels.inverse[batch.pairs.point])
        groups = batch.superpixels, pairs, batch.image_frame if s.superpixel_ids == "frame" else None
        k, q = pool_superpixels(points, self.images.head(features), *groups)
        seen = F.normalize(coarse_means(features, *groups), dim=1)
        there = seen.any(1)  # a superpixel too small for the teacher's resolution has no feature, and is left out
        k, q, seen = k[there], q[there], seen[there]
        likeness = seen @ seen.T
        losses, accuracy = tolerant_infonce(k, q, likeness, s.temperature, s.tolerance, s.excluded)
        weights = rarity(likeness, s.alike) if s.balance else torch.ones_like(losses)
        loss = (weights * losses).sum() / weights.sum().clamp_min(1e-12)
        return Step(loss, {"pairs": len(pairs), "superpixels": len(k), "accuracy": accuracy})

    def describe(self) -> dict[str, str]:
        """The student, the teacher, the superpixels, and what is tolerated."""
        s = self.settings
        maps = f"{self.maps[1]} in {self.maps[0]}, the most alike {s.tolerance:.0%} {s.excluded}"
        return super().describe() | {"superpixels": maps, "pooling": POOLING_BACKEND}
