"""The frozen image networks: ResNet and ViT, our own code, found by name or file."""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from data.datasets.dataset import named_object
from data.files import InputError
from slidr.config import WithTeacher
from slidr.teachers.resnet import ResNet
from slidr.teachers.vit import VisionTransformer
from slidr.teachers.weights import TEACHERS, Entry, load_weights, public_file

LAYERS = "last", "before_norm"  # of which features are given: after a ViT's last layer norm or before it
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # every teacher was trained with these


class Teacher:
    """A frozen image network. No nn.Module: whoever holds it has it in no state_dict, no optimiser and no DDP.

    Attributes: `channels` and `stride` of its output, `name`, and `source`, what was loaded; `layer`, one of
    LAYERS (a ResNet has no layer norm: both are the same).
    """

    def __init__(self, network: nn.Module, name: str, source: str, layer: str = "last"):
        self.network = network.requires_grad_(False).eval()
        self.name, self.source, self.layer = name, source, layer
        self.channels, self.stride = network.channels, network.stride
        self._mean, self._std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[B, 3, h, w]` in 0..1 -> features `[B, channels, h / stride, w / stride]`, on the images' device."""
        return self.late(images, 1)[0][0] if self.layer == "before_norm" else self.network(self._normalised(images))

    @torch.no_grad()
    def late(self, images: torch.Tensor, layers: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features of the last layers, first to last, of a ViT before its last norm; and of each image as a whole.

        Images `[B, 3, h, w]` in 0..1 -> maps `[B, C, h / stride, w / stride]`, and `[B, channels]`. Raises InputError
        if the network has no such `late` itself.
        """
        if not hasattr(self.network, "late"):
            raise InputError(f"the teacher `{self.name}` does not give its late layers; choose a ResNet or a ViT.")
        return self.network.late(self._normalised(images), layers)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        if self._mean.device != images.device or self._mean.dtype != images.dtype:
            self.network.to(images)
            self._mean, self._std = self._mean.to(images), self._std.to(images)
        return (images - self._mean) / self._std

    def identity(self) -> dict[str, str]:
        """Name, layer and the SHA-256 of its parameters: what checkpoints and model.pt keep of it."""
        digest = hashlib.sha256()
        for value in self.network.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return {"name": self.name, "layer": self.layer, "sha256": digest.hexdigest()}


class ProjectedTeacher(nn.Module):
    """A frozen teacher and the trained 1x1 convolution into the shared feature space (SLidR, section 3.1).

    Upsampling to the pixels and L2 normalisation happen where features are pooled (`slidr.pooling`).

    Args:
        settings: which teacher, and its weights.
        channels: C of the shared space.
        crop: rows and columns of the images it will see.

    Raises InputError for a teacher that cannot be had, or one whose patches do not fill the crop.
    """

    def __init__(self, settings: WithTeacher, channels: int, crop: tuple[int, int]):
        super().__init__()
        self.teacher = teacher_of(settings, crop)
        self.head = nn.Conv2d(self.teacher.channels, channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[I, 3, h, w]` in 0..1 -> `[I, C, h / stride, w / stride]`."""
        return self.head(self.teacher(images))

    def describe(self) -> str:
        """Which teacher, and where its weights come from."""
        return f"{self.teacher.name}: {self.teacher.source}"

    def model_parts(self) -> dict:
        """What model.pt keeps: the head, and which teacher it belongs to (see `slidr.networks.model_file`)."""
        weight, bias = self.head.weight.detach()[:, :, 0, 0], self.head.bias.detach()
        return {"image_head": [{"weight": weight, "bias": bias}], "teacher": self.teacher.identity()}


def teacher_of(settings: WithTeacher, crop: tuple[int, int], layer: Literal["last", "before_norm"] = "last") -> Teacher:
    """The settings' teacher. Raises InputError if it cannot be had, or if its patches do not fill the crop."""
    teacher = load_teacher(settings.teacher, settings.teacher_weights, settings.weights_folder, settings.dilated, layer)
    if isinstance(teacher.network, VisionTransformer):
        teacher.network.patches(*crop)  # a crop that does not fit is refused here, not at the first step
    return teacher


def load_teacher(
    name: str,
    weights: str | None = None,
    folder: Path = Path("weights"),
    dilated: bool = True,
    layer: Literal["last", "before_norm"] = "last",
) -> Teacher:
    """A frozen teacher.

    Args:
        name: a key of TEACHERS, or `package.module:FUNCTION` that returns a network with `channels` and `stride`.
        weights: None = the public file of that name (from `folder`, else downloaded), "random" = the same random
            weights every time, whatever the run's seed, or a file.
        folder: where downloads are kept.
        dilated: False = a ResNet keeps its strides (PPKT).
        layer: see `Teacher`.

    Raises InputError for an unknown name, a ViT that is asked to keep strides it does not have, weights that cannot be
    had, or that do not fit (naming the key).
    """
    own = ":" in name
    if not own and name not in TEACHERS:
        raise InputError(f"there is no teacher `{name}`; known are {', '.join(TEACHERS)}.")
    entry = Entry((named_object(name, {}, "teacher"),)) if own else TEACHERS[name]
    if not dilated and not own and entry.build[0] is not ResNet:
        raise InputError(f"`dilated` cannot be false: `{name}` has no strides to keep; choose a ResNet as --teacher.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = entry.build[0](*entry.build[1:], **({} if dilated or own else {"dilated": False}))
    if own and weights is None:
        return Teacher(network, name, "as it was built", layer)
    if weights == "random":
        return Teacher(network, name, "randomly initialised, its features are untrained", layer)
    path = Path(weights) if weights else public_file(name, entry, folder)
    load_weights(network, path)
    return Teacher(network, name, str(path), layer)
