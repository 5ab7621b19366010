"""ViT under the key names of the public DINO and DINOv2 checkpoints."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from data.files import InputError


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
        self.pos_embed = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, 1 + (trained // patch) ** 2, channels), 0, 0.02)
        )
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
        rows, columns = self.patches(*x.shape[2:])
        x = self.patch_embed.proj(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)
        x = x + self._positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
