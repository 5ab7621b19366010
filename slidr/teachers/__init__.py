"""The frozen image networks: ResNet and ViT, our own code, found by name or file."""

from pathlib import Path

import torch
from torch import nn

from data.disk import InputError
from slidr.teachers.resnet import ResNet
from slidr.teachers.weights import TEACHERS, load_weights, public_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # every teacher was trained with these


class Teacher(nn.Module):
    """A frozen image network: always in eval mode, never with gradients.

    Attributes: `channels` and `stride` of its output, `name`, and `source`, what was loaded.
    """

    def __init__(self, network: nn.Module, name: str, source: str):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.name, self.source = name, source
        self.channels, self.stride = network.channels, network.stride
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[B, 3, h, w]` in 0..1 -> features `[B, channels, h / stride, w / stride]`."""
        return self.network((images - self.mean) / self.std)


def load_teacher(
    name: str, weights: str | None = None, folder: Path = Path("weights"), dilated: bool = True
) -> Teacher:
    """A frozen teacher.

    Args:
        name: a key of TEACHERS.
        weights: None = the public file of that name (from `folder`, else downloaded), "random" = the same random
            weights every time, whatever the run's seed, or a file.
        folder: where downloads are kept.
        dilated: False = a ResNet keeps its strides (PPKT).

    Raises InputError for an unknown name, a ViT that shall keep strides it does not have, weights that cannot be had,
    or that do not fit (naming the key).
    """
    if name not in TEACHERS:
        raise InputError(f"there is no teacher `{name}`; known are {', '.join(TEACHERS)}.")
    entry = TEACHERS[name]
    if not dilated and entry.build[0] is not ResNet:
        raise InputError(f"`dilated` cannot be false: `{name}` has no strides to keep; choose a ResNet as --teacher.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = entry.build[0](*entry.build[1:], **({} if dilated else {"dilated": False}))
    if weights == "random":
        return Teacher(network, name, "randomly initialised, its features are untrained")
    path = Path(weights) if weights else public_file(name, entry, folder)
    load_weights(network, path)
    return Teacher(network, name, str(path))
