"""Which input row meets which weight at which output row: made once a resolution, shared by all layers."""

from dataclasses import dataclass
from itertools import product

import torch

from triton_kernels.coordinates import HIGHEST, LOWEST, check, floor_to, key_offset, pack
from triton_kernels.hash_table import HashTable

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class KernelMap:
    """Pairs of rows for each kernel offset.

    `fine[k]` and `coarse[k]` are `[P_k]` int64: row fine[k][i] (the convolution's input) meets weight k at row
    coarse[k][i] (its output). A transposed convolution reads the same map from coarse to fine. `centre` is the offset
    at which each row meets itself, if there is one.
    """

    fine: tuple[torch.Tensor, ...]
    coarse: tuple[torch.Tensor, ...]
    n_fine: int
    n_coarse: int
    centre: int | None


def kernel_offsets(kernel: Triple) -> list[Triple]:
    """The K offsets in weight order: axis 0 fastest; odd axes centred, even axes reaching forward."""
    axes = [range(-(k // 2), k // 2 + 1) if k % 2 else range(k) for k in kernel]
    return [(a, b, c) for c, b, a in product(*axes[::-1])]


def build(fine: torch.Tensor, coarse: torch.Tensor, kernel: Triple, step: Triple, table: HashTable) -> KernelMap:
    """The map of a convolution.

    Args:
        fine: `[V, 4]` input coordinates, those of `table`.
        coarse: `[V', 4]` output coordinates; the very same tensor for a submanifold layer.
        kernel: kernel size per axis.
        step: dilation x tensor stride of the input, per axis.
        table: rows of the fine coordinates.
    """
    offsets = [tuple(o * s for o, s in zip(offset, step, strict=True)) for offset in kernel_offsets(kernel)]
    # Rows in key order: neighbouring queries then fall on neighbouring keys, which a search rewards severalfold.
    order = table.rows if coarse is fine else torch.argsort(pack(coarse))
    queries = coarse[order]
    keys = pack(queries)
    low, high = (queries.amin(0).tolist(), queries.amax(0).tolist()) if len(queries) else (LOWEST, LOWEST)
    mirrored = coarse is fine and all(k % 2 for k in kernel)
    pairs: list = [None] * len(offsets)
    for k, offset in enumerate(offsets):
        if mirrored and pairs[-1 - k] is not None:
            pairs[k] = pairs[-1 - k][::-1]  # b = a + offset exactly where a = b - offset
            continue
        found = table.find(keys + key_offset(offset))
        if any(low[i + 1] + o < LOWEST[i + 1] or high[i + 1] + o > HIGHEST[i + 1] for i, o in enumerate(offset)):
            moved = queries[:, 1:] + torch.tensor(offset, device=queries.device)
            inside = (moved >= torch.tensor(LOWEST[1:], device=moved.device)) & (
                moved <= torch.tensor(HIGHEST[1:], device=moved.device)
            )
            found = torch.where(inside.all(1), found, -1)  # beyond the range a key would name another voxel
        hit = torch.nonzero(found >= 0).squeeze(1)
        pairs[k] = (found[hit], order[hit])
    fine_rows, coarse_rows = zip(*pairs, strict=True)
    return KernelMap(fine_rows, coarse_rows, len(fine), len(coarse), centre=len(pairs) // 2 if mirrored else None)


def downsample(coordinates: torch.Tensor, stride: Triple) -> torch.Tensor:
    """The distinct `floor(c / s) * s`, in the order of their keys; `stride` is the output's tensor stride."""
    return _distinct(floor_to(coordinates, stride))


def reached(coarse: torch.Tensor, kernel: Triple, step: Triple) -> torch.Tensor:
    """The distinct `c + offset`, in the order of their keys: where a transposed layer without a cached level lands."""
    offsets = torch.tensor([(0, *o) for o in kernel_offsets(kernel)], device=coarse.device, dtype=coarse.dtype)
    offsets = offsets * torch.tensor((1, *step), device=coarse.device, dtype=coarse.dtype)
    return _distinct((coarse[:, None] + offsets).reshape(-1, 4))


def _distinct(coordinates: torch.Tensor) -> torch.Tensor:
    check(coordinates)  # rounding down and reaching forward may leave the range, where keys would wrap
    keys = pack(coordinates)
    ordered, rows = torch.sort(keys, stable=True)
    first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    first[1:] = ordered[1:] != ordered[:-1]
    return coordinates[rows[first]]
