"""What methods share whose heads map into a frozen image network's own feature space."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from data.datasets.dataset import DataSet, Reader
from data.frame import Batch, Needs, Pairs
from data.samples.single import Single
from slidr.config import (
    Count,
    Index,
    MethodSettings,
    NonNegative,
    Positive,
    Range,
    Share,
    WithImageAugmentation,
    WithTeacher,
    key,
)
from slidr.methods.method import Method
from slidr.networks.model_file import layers_of
from slidr.networks.student import make_head
from slidr.pooling import pool_pairs
from slidr.similarity import Space, draw_camera_and_similarity
from slidr.teachers import teacher_of


class RegressionMethod(Method):
    """A student and heads on its backbone, whose targets are the teacher's features at the points' pixels.

    The optimisation is ScaLR's. A subclass builds its heads in __init__ and writes `forward`; `point_head` goes into
    model.pt, where it maps into the space of the teacher's features.
    """

    class Settings(MethodSettings, WithTeacher, WithImageAugmentation):
        """Regress a frozen image network's features, point by point."""

        teacher: str = key("dinov2_vitl14", "frozen image network, by name; `run.py env` lists them")
        before_norm: bool = key(True, "the teacher's features before its last layer norm, if it has one (published)")
        images_a_scan: Literal["one", "all"] = key("one", "images that a scan is compared with: a random one, or all")
        head: Literal["linear", "mlp"] = key("linear", "from the backbone to the teacher's features")
        hidden: Count = key(2048, "mlp: channels between its two layers")
        crop: tuple[Count, Count] = key((224, 448), "rows and columns of the images that the teacher sees")
        crop_area: Range = key((1.0, 1.0), "least and largest share of an image that a crop takes; 1, 1 = all of it")
        cuboid: Share = key(0.0, "largest side of the dropped cuboid as a share of the cloud's range; 0 = none")
        batch: Count = key(8, "scans a step")
        epochs: Count = key(25, "passes over the training split")
        lr: Positive = key(2e-3, "learning rate")
        optimizer: Literal["sgd", "adamw"] = key("adamw", "optimiser")
        weight_decay: NonNegative = key(0.03, "SGD: L2 penalty; AdamW: decoupled weight decay")
        schedule: Literal["cosine", "warmup_cosine", "one_cycle"] = key(
            "warmup_cosine", "learning rate: cosine, stepped per epoch; the others are stepped per step"
        )
        final_lr: NonNegative = key(1e-5, "cosine, warmup_cosine: learning rate at the end")
        warmup_steps: Index = key(3500, "warmup_cosine: steps of linear warm-up")

    point_head: torch.nn.Sequential

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.needs = Needs(cameras=1 if settings.images_a_scan == "one" else "all")
        self.teacher = teacher_of(settings, settings.crop, "before_norm" if settings.before_norm else "last")
        self.student = self.make_student(None)

    def make_head(self, out: int) -> torch.nn.Sequential:
        """A head from the backbone, of the settings' kind."""
        hidden = self.settings.hidden if self.settings.head == "mlp" else None
        return make_head(self.student.network.channels, out, hidden)

    def sample(self, reader: Reader, train: bool) -> Single:
        """A frame with one of its images, or all."""
        needs = replace(self.needs, shrink=self.settings.image_shrink)
        return Single(reader, needs, self.settings.augment_settings(train))

    def voxels(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Pairs]:
        """The backbone's features `[V, C]`, each voxel's frame `[V]`, and the pairs of voxels and pixels."""
        features, voxels = self.student(batch)
        return features, voxels.coordinates[:, 0], replace(batch.pairs, point=voxels.inverse[batch.pairs.point])

    def matched(
        self, head: torch.nn.Module, features: torch.Tensor, maps: torch.Tensor, size: tuple[int, int], pairs: Pairs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a head makes of each pair's voxel, and the teacher's feature at its pixel, `[M, C]` both.

        The head computes voxels or pairs, whichever are fewer: a camera sees but a part of a scan.
        """
        if len(pairs) < len(features):
            features = features[pairs.point]
            pairs = replace(pairs, point=torch.arange(len(pairs), device=features.device))
        return pool_pairs(head(features), maps, size, pairs)

    def describe(self) -> dict[str, str]:
        """The student and the teacher."""
        return super().describe() | {"teacher": f"{self.teacher.name}: {self.teacher.source}, {self.teacher.layer}"}

    def identity(self) -> dict:
        """The teacher."""
        return {"teacher": ", ".join(self.teacher.identity().values())}

    def model_parts(self) -> dict:
        """The point head; that of images is the identity."""
        return {"point_head": layers_of(self.point_head), "image_head": [], "teacher": self.teacher.identity()}

    def watch(self, reader: Reader, folder: Path, suffix: str = "") -> list[str]:
        """The first camera with its points, and what is similar to one of its points."""
        self.eval()

        def points(batch: Batch) -> torch.Tensor:
            features, voxels = self.student(batch.to(next(self.parameters()).device))
            return F.normalize(self.point_head(features), dim=1)[voxels.inverse]

        return draw_camera_and_similarity(reader, Space(points, self.teacher, self.settings.crop), folder, suffix)
