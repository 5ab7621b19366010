"""ViT under the key names of the public DINO, DINOv2 and DINOv3 checkpoints."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from data.files import InputError

Rotation = tuple[torch.Tensor, torch.Tensor]  # sine and cosine of the angles of every patch and channel of a head


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = _rotated(q, *rotation), _rotated(k, *rotation)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def _rotated(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Queries or keys `[B, heads, n, c]`, the last ones turned by the places of their patches (`[patches, c]`)."""
    others, x = x.split((x.shape[2] - len(sin), len(sin)), 2)
    first, second = x.chunk(2, -1)
    return torch.cat((others, x * cos + torch.cat((-second, first), -1) * sin), 2)


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
    def __init__(self, channels: int, heads: int, layer_scale: bool, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps)
        self.attn = _Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps)
        self.mlp = _Mlp(channels)
        self.ls1 = _LayerScale(channels) if layer_scale else nn.Identity()
        self.ls2 = _LayerScale(channels) if layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbedding(nn.Module):
    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)


class VisionTransformer(nn.Module):
    """ViT of DINO (no layer scale, trained at 224), DINOv2 (layer scale, trained at 518) or DINOv3; patch tokens only.

    Args:
        channels, depth, heads: 384, 12, 6 (S); 768, 12, 12 (B); 1024, 24, 16 (L).
        patch: pixels of a patch's side; also the output stride.
        trained: side in pixels that the position embedding is stored for; None = none is stored: queries and keys are
            turned by the places of their patches (DINOv3).
        layer_scale: DINOv2's and DINOv3's.
        registers: tokens beside the class token that stand for no patch (DINOv2 with registers, DINOv3: 4).
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        heads: int,
        patch: int,
        trained: int | None,
        layer_scale: bool,
        registers: int = 0,
    ):
        super().__init__()
        self.channels, self.stride, self.heads, self.registers = channels, patch, heads, registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed, eps = None, 1e-5
        if trained is not None:
            places, eps = 1 + (trained // patch) ** 2, 1e-6
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, places, channels), 0, 0.02))
        if registers:
            name = "storage_tokens" if trained is None else "register_tokens"
            self.register_parameter(name, nn.Parameter(torch.zeros(1, registers, channels)))
        self.patch_embed = _PatchEmbedding(channels, patch)
        self.blocks = nn.ModuleList(_Block(channels, heads, layer_scale, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps)

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position embedding `[1, 1 + rows * columns, C]`, bicubic where the crop is not the trained size."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        patches = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if self.registers:
            patches = F.interpolate(patches, (rows, columns), mode="bicubic", antialias=True)
        else:  # nudges the size by 0.1 and passes the ratio: the stored embedding is sampled at that scale
            scale = ((rows + 0.1) / side, (columns + 0.1) / side)
            patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)), 1)

    def _rotation(self, rows: int, columns: int, like: torch.Tensor) -> Rotation:
        """By how much each of a head's channels turns, from -1 to 1 along both sides of the image (DINOv3)."""
        size = self.channels // self.heads
        periods = 100.0 ** (torch.arange(size // 4, dtype=torch.float32) * 4 / size)  # of the image's half side
        y, x = (2 * (torch.arange(n) + 0.5) / n - 1 for n in (rows, columns))
        places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).view(-1, 2, 1)
        angles = (2 * math.pi * places / periods).flatten(1).repeat(1, 2)
        return angles.sin().to(like), angles.cos().to(like)

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of that size in pixels; InputError unless they fill it."""
        rows, columns = height // self.stride, width // self.stride
        if (height, width) != (rows * self.stride, columns * self.stride):
            raise InputError(
                f"the crop {height} x {width} is no multiple of this teacher's patch of {self.stride} pixels; "
                f"set --crop to e.g. [{rows * self.stride}, {columns * self.stride}]."
            )
        return rows, columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 3, h, w]` normalised -> `[B, channels, h / patch, w / patch]`; InputError unless patches fill it."""
        return self._map(self.norm(self._blocks(x, 1)[0]), x)

    def late(self, x: torch.Tensor, layers: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What the last blocks give, before the last norm, and the class token `[B, channels]` after it.

        The maps `[B, channels, h / patch, w / patch]` are those of the last `layers` blocks, first to last.
        """
        tokens = self._blocks(x, layers)
        return [self._map(t, x) for t in tokens], self.norm(tokens[-1][:, 0])

    def _blocks(self, x: torch.Tensor, layers: int) -> list[torch.Tensor]:
        """Tokens `[B, 1 + registers + patches, channels]` after each of the last `layers` blocks."""
        rows, columns = self.patches(*x.shape[2:])
        x = self.patch_embed.proj(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)
        rotation = None
        if self.pos_embed is None:
            rotation = self._rotation(rows, columns, x)
        else:
            x = x + self._positions(rows, columns)
        if self.registers:
            tokens = self.storage_tokens if self.pos_embed is None else self.register_tokens
            x = torch.cat((x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]), 1)
        outputs = []
        for block in self.blocks:
            x = block(x, rotation)
            outputs.append(x)
        return outputs[-layers:]

    def _map(self, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The patch tokens of an image as a map."""
        return tokens[:, 1 + self.registers :].transpose(1, 2).unflatten(2, self.patches(*image.shape[2:]))
