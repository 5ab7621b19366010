"""A trained lidar network on anybody's points: `network = slidr.load("model.pt"); features = network(points)`."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.files import InputError
from data.frame import Batch, Frame, collate, measured
from slidr.config import WithImageNetwork
from slidr.networks.model_file import (
    Model,
    apply_layers,
    class_logits,
    load_detector,
    load_student,
    point_features,
    read_model,
)
from slidr.networks.student import of_points
from slidr.teachers import LAYERS, TEACHERS, Teacher, load_teacher


class Network:
    """A lidar network of a model.pt, for inference.

    Attributes:
        model: the file's content (`slidr.networks.model_file.Model`).
        classes: class names by train id; empty unless it is a segmentation network.
        detector: finds boxes; None unless it was trained for that.
    """

    def __init__(self, model: Model, path: Path, device: torch.device | str = "cpu"):
        self.model, self.classes, self.device = model, model.classes, torch.device(device)
        self.detector = load_detector(model, path).to(self.device).eval() if model.detector else None
        student = self.detector.student if self.detector else load_student(model, path, None, bn_momentum=0.05)
        self.student = student.to(self.device).eval()

    @torch.no_grad()
    def __call__(
        self, points: np.ndarray | torch.Tensor, features: Literal["head", "backbone"] = "head", head: bool = False
    ) -> torch.Tensor:
        """Features, or classes, of every point of one scan.

        A point that no lidar measures (`data.frame.measured`) has features of NaN, and class 0.

        Args:
            points: `[N, 4]` float32: x, y, z in metres, and intensity as the network's data set stores it.
            features: "head" = L2-normalised, in the space that is shared with images (`[N, 64]` of SLidR);
                "backbone" = what linear probing sees (`[N, 96]` at width 1).
            head: give classes `[N]` int64 instead, of a segmentation network; 0 (ignored) never otherwise.

        Raises ValueError if the points have another shape, and InputError if classes are asked of a network without.
        """
        points = torch.as_tensor(points, dtype=torch.float32).cpu()
        if points.ndim != 2 or points.shape[1] != len(self.model.input.columns):
            raise ValueError(f"points must be [N, 4] (x, y, z, intensity); they are {list(points.shape)}.")
        meaning = self.model.input
        frame = Frame(id="points", points=measured(points.numpy()))
        batch = collate([frame], meaning.intensity_offset, meaning.intensity_scale)
        return self.classify(batch) if head else self.features(batch, features)

    @torch.no_grad()
    def features(self, batch: Batch, kind: Literal["head", "backbone"] = "head") -> torch.Tensor:
        """Features `[N, C]` of every point of a batch; see `__call__`."""
        x, voxels = self.student.backbone(batch.to(self.device))
        out = point_features(self.model, x.features) if kind == "head" else x.features
        return of_points(out, voxels.inverse, torch.nan)

    @torch.no_grad()
    def classify(self, batch: Batch) -> torch.Tensor:
        """Train ids `[N]` int64, 1 and above, of every point of a batch; 0 of one that is NaN."""
        if not self.model.class_head:
            raise InputError(
                f"a network of {self.model.stage} has no classes; one of linprobe, fewshot or zeroshot has."
            )
        x, voxels = self.student.backbone(batch.to(self.device))
        return of_points(class_logits(self.model, x.features)[:, 1:].argmax(1) + 1, voxels.inverse, 0)


def load(path: str | Path, device: torch.device | str = "cpu") -> Network:
    """The network of a model.pt, ready for inference; InputError if the file is something else."""
    path = Path(path)
    return Network(read_model(path), path, device)


def open_image_network(model: Model, settings: WithImageNetwork) -> tuple[Teacher | None, str]:
    """The frozen image network that a model was pretrained with, and what to say of it; None if it cannot be had.

    Where the settings name no weights: random or public ones, whichever have the SHA-256 that the model names.
    """
    if model.image_head is None or model.teacher is None:
        return None, "Pixels have no features: the model has no image head."
    name, layer, given = model.teacher.name, model.teacher.layer, settings.teacher_weights
    if name not in TEACHERS or layer not in LAYERS:  # a file must not choose which code is imported
        return None, f"Pixels have no features: its image network {name}, {layer}, is none of this program's."
    try:
        for weights in [given] if given else ["random", None]:
            teacher = load_teacher(name, weights, settings.weights_folder, settings.dilated, layer)
            if teacher.identity() == model.teacher.model_dump():
                size = " x ".join(map(str, settings.crop))
                return teacher, f"Pixels: {name} ({teacher.source}) on pictures of {size}, through the image head."
    except InputError as error:
        return None, f"Pixels have no features: {error}"
    return None, f"Pixels have no features: the model was pretrained with another {name} than {teacher.source}."


@torch.no_grad()
def image_features(model: Model, teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
    """Features `[I, C, h, w]`, in the space of `Network.features`, not normalised, of images `[I, 3, H, W]` in 0..1."""
    return apply_layers(model.image_head, teacher(images).movedim(1, -1)).movedim(-1, 1)
