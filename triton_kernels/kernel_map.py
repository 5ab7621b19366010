"""Kernel maps: which input row meets which weight at which output row. Made once a resolution, shared by all layers.

A map has two forms, and in each a side that writes coarse rows and a side that writes fine rows. `Pairs`, for torch:
the pairs of rows, by block and offset. `Tiles`, for Triton: a table of each row's neighbours, the rows sorted so that
those with the same neighbours share a tile, and for each tile a list of the offsets that occur in it; and the pairs,
packed without the host ever reading how many there are.
"""

from dataclasses import dataclass
from itertools import product

import torch

from triton_kernels.coordinates import HIGHEST, LOWEST, Triple, check, floor_to, key_offset, pack
from triton_kernels.hash_table import SortedKeys, distinct

BLOCK = 4096  # rows that torch writes at once: enough for products at full speed, few enough for the processor's cache


@dataclass(frozen=True)
class Side:
    """One side of a map, as read by the torch convolution that writes this side's rows.

    `read`, `written`: `[P]` the rows of each pair, on the other side and on this one, sorted by block of BLOCK rows of
    this side, then by offset, then by row. `counts`: pairs of each block and offset, `[blocks * K]`. `order`: `[P]` the
    positions of the pairs within their block, sorted by row. `starts`: `[n + 1]` where each row begins in `order`. All
    int64.
    """

    read: torch.Tensor
    written: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Pairs:
    """A kernel map for torch.

    `coarse`: the side that writes coarse rows. `fine`: the side that writes fine rows, or None if it is `coarse` with
    the offsets mirrored. `coarse` then leaves out the middle offset, which pairs each row with itself.
    """

    coarse: Side
    fine: Side | None


@dataclass(frozen=True)
class Plan:
    """One side of a map, as read by the Triton convolution that writes this side's rows.

    `order`: `[n]` int64 row of each slot. `table`: `[K, n]` neighbour of each slot at each offset, -1 for none.
    `lists`, `counts`: `[tiles, K]` the offsets that occur in each tile of `height` slots, and `[tiles]` how many do.
    All but `order` int32.
    """

    order: torch.Tensor
    table: torch.Tensor
    lists: torch.Tensor
    counts: torch.Tensor
    height: int


@dataclass(frozen=True)
class Tiles:
    """A kernel map for Triton.

    `coarse`: the plan that writes coarse rows. `fine`: the plan that writes fine rows, or None if it is `coarse` with
    the offsets mirrored. `pairs_fine`, `pairs_coarse`: packed pairs, int32; those of offset k lie from `start[k]` to
    `start[k + 1]`, and what follows the last pair is not written.
    """

    coarse: Plan
    fine: Plan | None
    pairs_fine: torch.Tensor
    pairs_coarse: torch.Tensor
    start: torch.Tensor
    n_fine: int
    n_coarse: int


def kernel_offsets(kernel: Triple) -> list[Triple]:
    """The K offsets in the weight's order: axis 0 varies fastest; odd axes are centred, even ones reach forward."""
    axes = [range(-(k // 2), k // 2 + 1) if k % 2 else range(k) for k in kernel]
    return [(a, b, c) for c, b, a in product(*axes[::-1])]


def build_pairs(fine: torch.Tensor, coarse: torch.Tensor, kernel: Triple, step: Triple, table: SortedKeys) -> Pairs:
    """The map of a convolution, for torch.

    Args:
        fine: `[V, 4]` input coordinates, those of `table`.
        coarse: `[V', 4]` output coordinates; for a submanifold layer the same tensor object as `fine`.
        kernel: kernel size per axis.
        step: dilation x tensor stride of the input, per axis.
        table: rows of the fine coordinates.
    """
    offsets = [tuple(o * s for o, s in zip(offset, step, strict=True)) for offset in kernel_offsets(kernel)]
    # Rows in key order: consecutive queries then find neighbouring keys, and a search is several times faster.
    keys, order = torch.sort(pack(coarse))
    queries = coarse[order]
    low, high = (queries.amin(0).tolist(), queries.amax(0).tolist()) if len(queries) else (LOWEST, LOWEST)
    mirrored = coarse is fine and all(k % 2 for k in kernel)
    fine_of = torch.full((len(offsets), len(coarse)), -1, device=coarse.device)
    coarse_of = fine_of if mirrored else torch.full((len(offsets), len(fine)), -1, device=coarse.device)
    for k, offset in enumerate(offsets[: len(offsets) // 2] if mirrored else offsets):
        found = table.find(keys + key_offset(offset))
        if any(low[i + 1] + o < LOWEST[i + 1] or high[i + 1] + o > HIGHEST[i + 1] for i, o in enumerate(offset)):
            by, lowest, highest = map(queries.new_tensor, (offset, LOWEST[1:], HIGHEST[1:]))
            moved = queries[:, 1:] + by
            inside = (moved >= lowest) & (moved <= highest)
            found = torch.where(inside.all(1), found, -1)  # out of range the key of another voxel
        hit = torch.nonzero(found >= 0).squeeze(1)
        found, rows = found[hit], order[hit]
        fine_of[k].index_copy_(0, rows, found)
        coarse_of[-1 - k if mirrored else k].index_copy_(0, found, rows)  # as b = a + offset where a = b - offset
    return Pairs(_side(fine_of), None if mirrored else _side(coarse_of))


def _side(table: torch.Tensor) -> Side:
    """The side that writes the rows of a table `[K, n]` of neighbours, -1 for none."""
    volume, n = table.shape
    read, written, order, counts = [], [], [], []
    for at in range(0, max(n, 1), BLOCK):
        block = table[:, at : at + BLOCK]
        hit, columns = block >= 0, block.shape[1]
        pairs = hit.view(-1).nonzero().squeeze(1)  # cheaper than three masked_select
        place = torch.cumsum(hit.view(-1), 0) - 1
        rows, ks = hit.T.nonzero(as_tuple=True)
        read.append(block.reshape(-1)[pairs])
        written.append(pairs % max(columns, 1) + at)
        order.append(place[ks * columns + rows])
        counts += hit.sum(1).tolist()
    starts = torch.zeros(n + 1, dtype=torch.int64, device=table.device)
    torch.cumsum((table >= 0).sum(0), 0, out=starts[1:])
    return Side(torch.cat(read), torch.cat(written), torch.cat(order), starts, tuple(counts))


def downsample(coordinates: torch.Tensor, stride: Triple) -> torch.Tensor:
    """The distinct `floor(c / s) * s`, `[V', 4]`, in the order of first occurrence; s is the output's tensor stride."""
    return _distinct(floor_to(coordinates, stride))


def reached(coarse: torch.Tensor, kernel: Triple, step: Triple) -> torch.Tensor:
    """The distinct `c + offset`, `[V, 4]`, in the order of first occurrence: the output of a transposed layer."""
    offsets = torch.tensor([(0, *o) for o in kernel_offsets(kernel)], device=coarse.device, dtype=coarse.dtype)
    offsets = offsets * torch.tensor((1, *step), device=coarse.device, dtype=coarse.dtype)
    return _distinct((coarse[:, None] + offsets).reshape(-1, 4))


def _distinct(coordinates: torch.Tensor) -> torch.Tensor:
    check(coordinates)  # rounding down and reaching forward may leave the range, and keys would wrap
    found = distinct(coordinates.int().contiguous())
    return found.collect(found.ends.tolist() or [0])[0]
