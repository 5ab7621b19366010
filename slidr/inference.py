"""A trained lidar network on anybody's points: `network = slidr.load("model.pt"); features = network(points)`."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.files import InputError
from data.frame import Batch, Frame, collate
from slidr.networks.model_file import Model, apply_layers, load_student, read_model


class Network:
    """A lidar network of a model.pt, for inference.

    Attributes:
        model: the file's content (`slidr.networks.model_file.Model`).
        classes: class names by train id; empty unless it is a segmentation network.
    """

    def __init__(self, model: Model, path: Path, device: torch.device | str = "cpu"):
        self.model, self.classes, self.device = model, model.classes, torch.device(device)
        self.student = load_student(model, path, None, bn_momentum=0.05).to(self.device).eval()

    @torch.no_grad()
    def __call__(
        self, points: np.ndarray | torch.Tensor, features: Literal["head", "backbone"] = "head", head: bool = False
    ) -> torch.Tensor:
        """Features, or classes, of every point of one scan.

        Args:
            points: `[N, 4]` float32: x, y, z in metres, and intensity as the network's data set stores it.
            features: "head" = L2-normalised, in the space that is shared with images (`[N, 64]` of SLidR);
                "backbone" = what linear probing sees (`[N, 96]` at width 1).
            head: give classes `[N]` int64 instead, of a segmentation network; 0 (ignored) never.

        Raises ValueError if the points have another shape, and InputError if classes are asked of a network without.
        """
        points = torch.as_tensor(points, dtype=torch.float32).cpu()
        if points.ndim != 2 or points.shape[1] != len(self.model.input.columns):
            raise ValueError(f"points must be [N, 4] (x, y, z, intensity); they are {list(points.shape)}.")
        meaning = self.model.input
        frame = Frame(id="points", points=points.numpy())
        batch = collate([frame], meaning.intensity_offset, meaning.intensity_scale)
        return self.classify(batch) if head else self.features(batch, features)

    @torch.no_grad()
    def features(self, batch: Batch, kind: Literal["head", "backbone"] = "head") -> torch.Tensor:
        """Features `[N, C]` of every point of a batch; see `__call__`."""
        x, voxels = self.student.backbone(batch.to(self.device))
        out = x.features
        if kind == "head":
            out = torch.nn.functional.normalize(apply_layers(self.model.point_head, out), dim=1)
        return out[voxels.inverse]

    @torch.no_grad()
    def classify(self, batch: Batch) -> torch.Tensor:
        """Train ids `[N]` int64, 1 and above, of every point of a batch."""
        if not self.model.class_head:
            raise InputError(f"a network of {self.model.stage} has no classes; load a model.pt of linprobe or fewshot.")
        x, voxels = self.student.backbone(batch.to(self.device))
        return (apply_layers(self.model.class_head, x.features)[:, 1:].argmax(1) + 1)[voxels.inverse]


def load(path: str | Path, device: torch.device | str = "cpu") -> Network:
    """The network of a model.pt, ready for inference; InputError if the file is something else."""
    path = Path(path)
    return Network(read_model(path), path, device)
