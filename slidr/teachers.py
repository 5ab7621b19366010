"""The frozen image networks: ResNet and ViT under the key names of the public checkpoints, found by name or file."""

import hashlib
import math
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.disk import InputError, atomic_write

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, dilation: int):
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, channels, h, w]` -> `[B, 4 * width, h / stride, w / stride]`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, channels, h, w]` -> `[B, width, h / stride, w / stride]`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """ResNet without its classifier; strides after the stem's replaced by dilation, or kept.

    Args:
        block: BasicBlock or Bottleneck.
        blocks: blocks of each layer.
        width: channels of the stem; layer i has width * 2^i (times the block's expansion).
        dilated: output stride 4 (the published recipe) instead of 4 * 2^(layers - 1).
    """

    def __init__(self, block: type, blocks: tuple[int, ...], width: int = 64, dilated: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers = len(blocks)
        channels, dilation = width, 1
        for i, count in enumerate(blocks):
            stride = 2 if i else 1
            before = dilation  # the first block of a dilated layer still sees the previous layer's dilation
            if dilated and i:
                dilation, stride = 2 * dilation, 1
            planes = width * 2**i
            layer = [block(channels, planes, stride, before)]
            channels = planes * block.expansion
            layer += [block(channels, planes, 1, dilation) for _ in range(count - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
        self.channels = channels
        self.stride = 4 if dilated else 4 * 2 ** (len(blocks) - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 3, h, w]` normalised -> `[B, channels, h / stride, w / stride]`."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(self.layers):
            x = getattr(self, f"layer{i + 1}")(x)
        return x


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class _Mlp(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _LayerScale(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, layer_scale: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = _Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = _Mlp(channels)
        self.ls1 = _LayerScale(channels) if layer_scale else nn.Identity()
        self.ls2 = _LayerScale(channels) if layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbedding(nn.Module):
    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)


class VisionTransformer(nn.Module):
    """ViT of DINO (no layer scale, trained at 224) or DINOv2 (layer scale, trained at 518); patch tokens only.

    Args:
        channels, depth, heads: 384, 12, 6 (S); 768, 12, 12 (B); 1024, 24, 16 (L).
        patch: pixels of a patch's side; also the output stride.
        trained: side in pixels that the position embedding is stored for.
        layer_scale: DINOv2's.
    """

    def __init__(self, channels: int, depth: int, heads: int, patch: int, trained: int, layer_scale: bool):
        super().__init__()
        self.channels, self.stride = channels, patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (trained // patch) ** 2, channels))
        self.patch_embed = _PatchEmbedding(channels, patch)
        self.blocks = nn.ModuleList(_Block(channels, heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position embedding `[1, 1 + rows * columns, C]`, bicubic where the crop is not the trained size."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        patches = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        # both families nudge the size by 0.1 and pass the ratio: the stored embedding is sampled at that scale
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 3, h, w]` normalised -> `[B, channels, h / patch, w / patch]`; InputError unless patches fill it."""
        rows, columns = (side // self.stride for side in x.shape[2:])
        if x.shape[2:] != (rows * self.stride, columns * self.stride):
            raise InputError(
                f"the crop {x.shape[2]} x {x.shape[3]} is no multiple of this teacher's patch of {self.stride} pixels; "
                f"set --crop to e.g. [{rows * self.stride}, {columns * self.stride}]."
            )
        x = self.patch_embed.proj(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)
        x = x + self._positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


@dataclass(frozen=True)
class Entry:
    """One teacher by name.

    build: architecture and its arguments; the weights' address, and the SHA-256 of the file or its first digits.
    Without a published checksum nothing is downloaded: the user fetches the file and names it.
    """

    build: tuple
    url: str | None = None
    sha256: str | None = None

    def where(self, folder: Path) -> str:
        """Where its weights are, for `run.py env`."""
        if self.url is None:
            return "no public weights: --teacher_weights random or FILE"
        file = folder / self.url.rsplit("/", 1)[1]
        if file.exists():
            return f"in {file}"
        return f"downloaded from {self.url} on first use" if self.sha256 else f"fetch {self.url} to {file}"


_META = "https://dl.fbaipublicfiles.com"
_RESNET50 = (ResNet, Bottleneck, (3, 4, 6, 3))
_S, _B, _L = (384, 12, 6), (768, 12, 12), (1024, 24, 16)
TEACHERS = {
    "resnet50_imagenet": Entry(_RESNET50, "https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61"),
    "resnet50_moco_v2": Entry(_RESNET50, f"{_META}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"),
    "resnet50_moco_v1": Entry(_RESNET50, f"{_META}/moco/moco_checkpoints/moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar"),
    "resnet50_swav": Entry(_RESNET50, f"{_META}/deepcluster/swav_800ep_pretrain.pth.tar"),
    "resnet50_deepcluster_v2": Entry(_RESNET50, f"{_META}/deepcluster/deepclusterv2_800ep_pretrain.pth.tar"),
    "resnet50_dino": Entry(_RESNET50, f"{_META}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"),
    "vit_small_16_dino": Entry(
        (VisionTransformer, *_S, 16, 224, False),
        f"{_META}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    ),
    "vit_small_8_dino": Entry(
        (VisionTransformer, *_S, 8, 224, False), f"{_META}/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"
    ),
    "vit_base_16_dino": Entry(
        (VisionTransformer, *_B, 16, 224, False), f"{_META}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    ),
    "vit_base_8_dino": Entry(
        (VisionTransformer, *_B, 8, 224, False), f"{_META}/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"
    ),
    "dinov2_vits14": Entry(
        (VisionTransformer, *_S, 14, 518, True), f"{_META}/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
    ),
    "dinov2_vitb14": Entry(
        (VisionTransformer, *_B, 14, 518, True), f"{_META}/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
    ),
    "dinov2_vitl14": Entry(
        (VisionTransformer, *_L, 14, 518, True), f"{_META}/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
    ),
    "resnet18_imagenet": Entry(
        (ResNet, BasicBlock, (2, 2, 2, 2)), "https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd"
    ),
    "resnet_small": Entry((ResNet, BasicBlock, (1, 1), 32)),
}


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


class ImageHead(nn.Module):
    """The trained head on the teacher (paper, section 3.1): 1x1 convolution, bilinear upsampling, L2 per pixel."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.project = nn.Conv2d(channels, out_channels, 1)
        self.stride = stride

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[B, channels, h, w]` -> `[B, out_channels, h * stride, w * stride]`, unit length at every pixel."""
        x = F.interpolate(self.project(features), scale_factor=self.stride, mode="bilinear", align_corners=True)
        return F.normalize(x, dim=1)


def load_teacher(name: str, weights: str | None = None, folder: Path = Path("weights")) -> Teacher:
    """A frozen teacher.

    Args:
        name: a key of TEACHERS.
        weights: None = the public file of that name (from `folder`, else downloaded), "random", or a file.
        folder: where downloads are kept.

    Raises InputError for an unknown name, weights that cannot be had, or that do not fit (naming the key).
    """
    if name not in TEACHERS:
        raise InputError(f"there is no teacher `{name}`; known are {', '.join(TEACHERS)}.")
    entry = TEACHERS[name]
    network = entry.build[0](*entry.build[1:])
    if weights == "random":
        return Teacher(network, name, "randomly initialised, its features are untrained")
    path = Path(weights) if weights else _public_file(name, entry, folder)
    _load(network, path)
    return Teacher(network, name, str(path))


def _public_file(name: str, entry: Entry, folder: Path) -> Path:
    if entry.url is None:
        raise InputError(f"`{name}` has no public weights; pass --teacher_weights random or a file.")
    path = folder / entry.url.rsplit("/", 1)[1]
    if path.exists():
        return path
    if entry.sha256 is None:
        raise InputError(
            f"the weights of `{name}` have no published SHA-256, so they are not downloaded unseen: "
            f"fetch {entry.url} to {path} yourself, or pass --teacher_weights FILE."
        )
    try:
        with urllib.request.urlopen(entry.url, timeout=30) as response, atomic_write(path) as temporary:
            digest = hashlib.sha256()
            size = int(response.headers.get("Content-Length", 0))
            with open(temporary, "wb") as file, tqdm(total=size, unit="B", unit_scale=True, desc=path.name) as bar:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            if not digest.hexdigest().startswith(entry.sha256):
                raise InputError(f"{entry.url} arrived with another SHA-256 than {entry.sha256}...; try again later.")
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(
            f"cannot download {entry.url} ({error}): fetch it to {path}, or pass --teacher_weights FILE or random."
        ) from error
    return path


_PREFIXES = ("module.", "encoder_q.", "backbone.", "encoder.", "teacher.", "student.", "model.")
_HEADS = ("fc.", "head.", "heads.", "mlp_head.", "projection_head.", "prototypes.", "encoder_k.", "queue", "mask_token")


def _load(network: nn.Module, path: Path) -> None:
    """Put a checkpoint of any public layout into the network; InputError names the first key that does not fit."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read the teacher's weights {path}: {error.strerror or error}.") from error
    except Exception as error:  # torch.load raises a dozen types for files that are no checkpoint
        raise InputError(f"{path} is no checkpoint of plain tensors ({type(error).__name__}).") from error
    for nest in ("state_dict", "teacher", "model"):
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no state dict.")
    found = {}
    for key, value in content.items():
        bare = key
        while prefix := next((p for p in _PREFIXES if bare.startswith(p)), None):
            bare = bare[len(prefix) :]
        found[bare] = value
    own = network.state_dict()
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            found.setdefault(key, value)  # older files lack it, and eval mode never reads it
        if key not in found:
            raise InputError(f"{path} lacks the key `{key}`; is it a checkpoint of this teacher?")
        if found[key].shape != value.shape:
            raise InputError(
                f"{path}: `{key}` has shape {list(found[key].shape)}, this teacher needs {list(value.shape)}."
            )
    for key in found.keys() - own.keys():
        if not key.startswith(_HEADS):
            raise InputError(f"{path} holds the unknown key `{key}`; is it a checkpoint of this teacher?")
    network.load_state_dict({key: found[key].float() if found[key].is_floating_point() else found[key] for key in own})
