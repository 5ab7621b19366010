"""The definition of every operation, naive and in any precision. Only tests use it, to check the implementations."""

import math
from itertools import product

import torch


def kernel_offsets(kernel: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The offsets in the order k = i0 + K0 i1 + K0 K1 i2: odd axes are centred, even ones reach forward."""
    return [
        tuple(i - k // 2 if k % 2 else i for i, k in zip((a, b, c), kernel, strict=True))
        for c, b, a in product(range(kernel[2]), range(kernel[1]), range(kernel[0]))
    ]


def downsample(coordinates: list[tuple], stride: tuple[int, int, int]) -> list[tuple]:
    """The distinct floor(c / s) * s, in the order of their first occurrence."""
    floors = ((c[0], *(math.floor(x / s) * s for x, s in zip(c[1:], stride, strict=True))) for c in coordinates)
    return list(dict.fromkeys(floors))


def pairs(fine: list[tuple], coarse: list[tuple], kernel, step) -> list[tuple[int, int, int]]:
    """(k, fine row, coarse row) wherever fine = coarse + offset_k * step."""
    row = {c: i for i, c in enumerate(fine)}
    found = []
    for k, offset in enumerate(kernel_offsets(kernel)):
        for j, (b, *c) in enumerate(coarse):
            at = (b, *(x + o * s for x, o, s in zip(c, offset, step, strict=True)))
            if at in row:
                found.append((k, row[at], j))
    return found


def convolve(x: torch.Tensor, weight: torch.Tensor, found: list[tuple], n_out: int, transposed: bool = False):
    """out[o] = the sum over pairs (k, i, o) of x[i] @ W[k]; transposed, i and o are swapped."""
    out = [x.new_zeros(weight.shape[2]) for _ in range(n_out)]
    for k, i, o in found:
        if transposed:
            i, o = o, i
        out[o] = out[o] + x[i] @ weight[k]
    return torch.stack(out) if out else x.new_zeros(0, weight.shape[2])


def voxelize(bins: torch.Tensor, batch_index: torch.Tensor) -> tuple[list[tuple], list[int], list[int]]:
    """The distinct (batch, floor(bin)) by first occurrence, the first point of each, the voxel of each point."""
    cells = [(int(b), *(math.floor(v) for v in row)) for b, row in zip(batch_index, bins.tolist(), strict=True)]
    voxels = list(dict.fromkeys(cells))
    return voxels, [cells.index(v) for v in voxels], [voxels.index(c) for c in cells]


def voxel_mean(values: torch.Tensor, inverse: torch.Tensor, voxels: int) -> torch.Tensor:
    """The mean of the rows of values in each voxel."""
    return torch.stack([values[inverse == v].mean(0) for v in range(voxels)]) if voxels else values[:0]


def normalize(x: torch.Tensor, weight, bias, eps: float, residual: torch.Tensor | None = None, relu: bool = False):
    """Batch norm with the statistics of x, plus the residual, through the ReLU."""
    variance, mean = torch.var_mean(x, 0, correction=0)
    out = (x - mean) / torch.sqrt(variance + eps) * weight + bias
    out = out if residual is None else out + residual
    return out.clamp_min(0) if relu else out
