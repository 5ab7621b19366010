"""PPKT: points learn from the pixels they fall into (Liu et al. 2021, as SLidR's authors ran it: supplement, C.1)."""

from dataclasses import replace

import torch

from data.frame import Batch, Pairs
from slidr.config import Count, Positive, key
from slidr.losses import gathered_infonce, infonce
from slidr.methods.image_method import ImageMethod
from slidr.pooling import pool_pairs
from slidr.training.learner import Step


class PPKT(ImageMethod):
    """A point finds its pixel among the pixels of thousands of other pairs, drawn at random from the batch."""

    class Settings(ImageMethod.Settings):
        """Distil a frozen image network into a lidar network, pixel by pixel (PPKT; SLidR, supplement C.1)."""

        dilated: bool = key(
            False, "a ResNet teacher's strides become dilation: features at 1/4; false = they stay (ResNet-50: 1/32)"
        )
        temperature: Positive = key(0.07, "temperature of InfoNCE")
        sampled_pairs: Count = key(4096, "point-pixel pairs drawn at random from each batch, if it has so many")
        gather_negatives: bool = key(False, "several processes: the pixels of all are negatives, not each one's own")

    def draw_pairs(self, pairs: Pairs) -> Pairs:
        """At most `sampled_pairs` of the batch's pairs."""
        return pairs.select(torch.randperm(len(pairs), device=pairs.point.device)[: self.settings.sampled_pairs])

    def forward(self, batch: Batch) -> Step:
        """InfoNCE from points to pixels."""
        points, voxels = self.student(batch)
        pixels = self.images(batch.images)
        pairs = self.draw_pairs(replace(batch.pairs, point=voxels.inverse[batch.pairs.point]))
        k, q = pool_pairs(points, pixels, batch.images.shape[2:], pairs)
        contrast = gathered_infonce if self.settings.gather_negatives and self.training else infonce
        loss, accuracy = contrast(k, q, self.settings.temperature)
        return Step(loss, {"pairs": len(pairs), "accuracy": accuracy})

    def describe(self) -> dict[str, str]:
        """The student, the teacher and the pairs."""
        return super().describe() | {"pairs": f"{self.settings.sampled_pairs} a step, drawn at random"}
