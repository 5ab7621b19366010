"""The teacher's last layers matched one by one, and its class token: after HilDA (arXiv 2606.20189), without time.

Weights, rates and epochs of that work are not known here: the two layers count alike, as there; the weight of the class
token was found by experiment (docs/results.md); the rest is ScaLR's.
"""

from typing import Literal

import torch
from torch import nn

from data.datasets.dataset import DataSet
from data.frame import Batch
from slidr.config import Count, NonNegative, key
from slidr.losses import cosine_distance
from slidr.methods.regression import RegressionMethod
from slidr.pooling import max_by_cloud, max_of_head
from slidr.training.learner import Step


class LateLayers(RegressionMethod):
    """A light head for each of the teacher's last layers, by cosine distance; and one for what it sees in all images.

    The class token stands for an image; the maximum over the scan's images for the scan. A ResNet has none: the mean of
    its features over the image stands for it, and its last layers are its last stages.
    """

    class Settings(RegressionMethod.Settings):
        """Regress a frozen image network's last layers and its class token (after HilDA)."""

        head: Literal["linear", "mlp"] = key("mlp", "from the backbone to the teacher's features")
        layers: Count = key(2, "last layers of the teacher that are matched, each by a head of its own")
        class_weight: NonNegative = key(0.1, "weight of the class token's term, a mean over its channels; 0 = none")

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        side = 2 * self.teacher.stride
        maps, whole = self.teacher.late(torch.zeros(1, 3, side, side), settings.layers)
        self.heads = nn.ModuleList(self.make_head(m.shape[1]) for m in maps)
        self.class_head = self.make_head(whole.shape[1]) if settings.class_weight else None

    @property
    def point_head(self) -> nn.Sequential:
        """The head of the last layer."""
        return self.heads[-1]

    def forward(self, batch: Batch) -> Step:
        """Mean cosine distance over the layers, and the squared error of the scans' class tokens."""
        features, frame, pairs = self.voxels(batch)
        maps, whole = self.teacher.late(batch.images, len(self.heads))
        size = batch.images.shape[2:]
        terms = [
            cosine_distance(*self.matched(head, features, target, size, pairs))
            for head, target in zip(self.heads, maps, strict=True)
        ]
        loss = sum(terms) / len(terms)
        numbers = {"pairs": len(pairs), "layers": loss.detach()}
        if self.class_head is not None:
            scans = max_of_head(self.class_head, features, frame, len(batch.ids))
            seen = max_by_cloud(whole, batch.image_frame, len(batch.ids))
            there = (scans.isfinite() & seen.isfinite()).all(1, keepdim=True)  # not a scan without points or images
            term = torch.where(there, scans - seen, 0.0).square().mean(1).sum() / there.sum().clamp_min(1)
            loss = loss + self.settings.class_weight * term
            numbers["class"] = term.detach()
        return Step(loss, numbers)
