"""The student: a sparse residual U-Net (paper, section 3.1), with the module names of the public checkpoints."""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import nn

from data.files import InputError
from triton_kernels import BatchNorm, SparseConv3d, SparseConvTranspose3d, SparseTensor, cat

PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
BLOCKS = {
    "res16unet14c": (1, 1, 1, 1, 1, 1, 1, 1),
    "res16unet18c": (2, 2, 2, 2, 2, 2, 2, 2),
    "res16unet34c": (2, 3, 4, 6, 2, 2, 2, 2),
}
STRIDES = (1, 2, 4, 8, 16)  # tensor strides of the levels
PREFIXES = ("module.", "_orig_mod.", "model_points.", "model.", "encoder.", "backbone.", "trunk.2.")
OTHERS = ("model_images.", "trunk.")  # beside it in raw checkpoints: the image network; DepthContrast's point network


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with a shortcut, 1x1x1 where the channels change."""

    def __init__(self, in_channels: int, channels: int, bn_momentum: float, bn_momentum_blocks: float):
        super().__init__()
        self.conv1 = SparseConv3d(in_channels, channels, 3)
        self.norm1 = BatchNorm(channels, bn_momentum_blocks)
        self.conv2 = SparseConv3d(channels, channels, 3)
        self.norm2 = BatchNorm(channels, bn_momentum_blocks)
        self.downsample = (
            nn.Sequential(SparseConv3d(in_channels, channels, 1), BatchNorm(channels, bn_momentum))
            if in_channels != channels
            else None
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[V, in_channels]` -> `[V, channels]` on the same coordinates."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.norm1(self.conv1(x), relu=True)
        return self.norm2(self.conv2(out), residual=shortcut, relu=True)


class MinkUNet(nn.Module):
    """Res16UNet: four strided levels down, four transposed ones up, skips concatenated, a 1x1x1 layer at the end.

    Args:
        out_channels: channels of the last layer; None = there is none, the output is that of the backbone.
        architecture: a key of BLOCKS.
        in_channels: input features a voxel.
        bn_momentum: of stem, strided, transposed and shortcut norms.
        bn_momentum_blocks: of the norms inside residual blocks, which the published code's option does not reach.
        normalize: L2-normalise each voxel's output.
        width: multiplies all planes and the stem, rounded to multiples of 8.
        planes, stem, stem_kernel: channels of the eight levels and of the stem, and the stem's kernel size.

    Raises InputError for an architecture that BLOCKS does not have.
    """

    def __init__(
        self,
        out_channels: int | None,
        architecture: str = "res16unet34c",
        in_channels: int = 1,
        bn_momentum: float = 0.05,
        bn_momentum_blocks: float = 0.1,
        normalize: bool = False,
        width: float = 1.0,
        planes: tuple[int, ...] = PLANES,
        stem: int = 32,
        stem_kernel: int = 3,
    ):
        super().__init__()
        if architecture not in BLOCKS:
            raise InputError(f"there is no architecture `{architecture}`; choose one of {', '.join(BLOCKS)}.")
        planes, stem = tuple(_scaled(p, width) for p in planes), _scaled(stem, width)
        self.normalize, momenta = normalize, (bn_momentum, bn_momentum_blocks)
        self.conv0p1s1 = SparseConv3d(in_channels, stem, stem_kernel)
        self.bn0 = BatchNorm(stem, bn_momentum)
        self.down, self.up = [], []
        channels, skips = stem, [stem]
        for level, blocks in enumerate(BLOCKS[architecture]):
            if level < 4:
                names = f"conv{level + 1}p{2**level}s2", f"bn{level + 1}", f"block{level + 1}"
                convolution, after = SparseConv3d(channels, channels, 2, 2), channels
                joined = channels
            else:
                names = f"convtr{level}p{2 ** (8 - level)}s2", f"bntr{level}", f"block{level + 1}"
                convolution, after = SparseConvTranspose3d(channels, planes[level], 2, 2), planes[level]
                joined = planes[level] + skips[7 - level]
            widths = [joined] + [planes[level]] * blocks
            modules = (
                convolution,
                BatchNorm(after, bn_momentum),
                nn.Sequential(*(ResidualBlock(*pair, *momenta) for pair in zip(widths, widths[1:], strict=False))),
            )
            for name, module in zip(names, modules, strict=True):
                self.add_module(name, module)
            (self.down if level < 4 else self.up).append(names)
            channels = planes[level]
            if level < 3:
                skips.append(channels)
        self.channels = channels
        self.final = None if out_channels is None else SparseConv3d(channels, out_channels, 1, bias=True)

    def parts(self) -> list[list[nn.Parameter]]:
        """All parameters but the last layer's, by depth: the stem, four parts of the encoder, four of the decoder."""
        stages = [("conv0p1s1", "bn0"), *self.down, *self.up]
        return [[p for name in names for p in getattr(self, name).parameters()] for names in stages]

    def backbone(self, x: SparseTensor) -> SparseTensor:
        """`[V, in_channels]` at stride 1 -> features `[V, 96]` (at width 1) before the last layer."""
        x = self.bn0(self.conv0p1s1(x), relu=True)
        skips = []
        for names in self.down:
            skips.append(x)
            convolution, norm, blocks = (getattr(self, name) for name in names)
            x = blocks(norm(convolution(x), relu=True))
        for names in self.up:
            convolution, norm, blocks = (getattr(self, name) for name in names)
            x = blocks(cat(norm(convolution(x), relu=True), skips.pop()))
        return x

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[V, in_channels]` at stride 1 -> `[V, out_channels]` on the same coordinates."""
        x = self.backbone(x)
        x = x if self.final is None else self.final(x)
        return x.with_features(nn.functional.normalize(x.features, dim=1)) if self.normalize else x


def _scaled(channels: int, width: float) -> int:
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)


UNREAD = ".num_batches_tracked"  # a fixed momentum never reads it; the public checkpoints, and ours, lack it


def to_minkowski(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict in the public checkpoints' layout: `.kernel`, 1x1x1 layers as plain matrices, bias as a row."""
    theirs = {}
    for name, value in weights.items():
        if name.endswith(UNREAD):
            continue
        if name.endswith(".weight") and not name.endswith(".bn.weight"):
            name = name[: -len("weight")] + "kernel"
            value = value[0] if len(value) == 1 else value
        elif name == "final.bias":
            value = value[None]
        theirs[name] = value
    return theirs


def from_minkowski(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A public checkpoint's student in our layout; the inverse of `to_minkowski`.

    Known prefixes are stripped, networks beside it (OTHERS) and batch-norm counters left out. Raises InputError naming
    the key for keys that no such network has.
    """
    ours, names = {}, {}
    for name, value in weights.items():
        bare = name
        while prefix := next((p for p in PREFIXES if bare.startswith(p)), None):
            bare = bare[len(prefix) :]
        if bare.startswith(OTHERS):
            continue
        layer = bare.startswith(("conv", "bn", "block", "final")) and isinstance(value, torch.Tensor)
        if not layer or not (value.ndim or bare.endswith(UNREAD)):
            raise InputError(f"`{name}` is no layer of a Res16UNet; is this the lidar network of a checkpoint?")
        if bare.endswith(".kernel"):
            bare = bare[: -len("kernel")] + "weight"
            value = value[None] if value.ndim == 2 else value
        elif bare == "final.bias":
            value = value.reshape(-1)
        if bare in ours:
            raise InputError(f"`{names[bare]}` and `{name}` both mean `{bare}`; remove one of them from the file.")
        if not bare.endswith(UNREAD):
            ours[bare], names[bare] = value, name
    return ours


def shape_of(weights: dict[str, torch.Tensor]) -> tuple[str, float]:
    """The architecture and width of a network's weights in our layout, by their names and shapes.

    Raises InputError if no architecture has these blocks.
    """
    blocks = Counter(key[: key.index(".")] for key in weights if re.fullmatch(r"block\d\.\d+\.conv1\.weight", key))
    found = tuple(blocks[f"block{level + 1}"] for level in range(len(PLANES)))
    known = next((name for name, counts in BLOCKS.items() if counts == found), None)
    widest = weights.get("block4.0.norm1.bn.weight")
    if known is None or widest is None:
        raise InputError(f"a network with {found} blocks a level is none of {', '.join(BLOCKS)}; is the file complete?")
    return known, max(1, widest.numel()) / PLANES[3]
