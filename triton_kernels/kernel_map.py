"""Which input row meets which weight at which output row: made once a resolution, shared by all layers.

Two forms of one thing, each with a side that writes coarse rows and one that writes fine rows. `Pairs`, for torch: the
pairs of rows, by block and offset. `Tiles`, for Triton: a table of each row's neighbours, the rows sorted so that
those with the same neighbours share a tile, and each tile's list of the offsets that occur in it; and the pairs, packed
but never counted by the host.
"""

import functools
import math
from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl

from triton_kernels.backend import UNSPECIALIZED, cdiv, launch
from triton_kernels.coordinates import HIGHEST, LOWEST, Triple, check, floor_to, in_range, key_of, key_offset, pack
from triton_kernels.hash_table import Distinct, HashTable, SortedKeys, find

BLOCK = 4096  # rows that torch writes at once: enough for products at full speed, few enough for the processor's cache
ROWS = 256  # that one program of a Triton kernel looks up, ranks or packs


@dataclass(frozen=True)
class Side:
    """One side of a map, as the torch convolution that writes this side's rows reads it.

    `read`, `written`: `[P]` rows of each pair, on the other side and on this one: block after block of BLOCK rows of
    this side, in each offset after offset, and in each row after row. `counts`: pairs of each block and offset,
    `[blocks * K]`. `order`: `[P]` for row after row, the places of its pairs within the block. `starts`: `[n + 1]`
    where each row begins in `order`. All int64.
    """

    read: torch.Tensor
    written: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Pairs:
    """A kernel map for torch.

    `coarse`: the side that writes coarse rows. `fine`: the side that writes fine rows; None where it is `coarse` with
    the offsets mirrored. Then the offset in the middle, which pairs each row with itself, is left out of the side.
    """

    coarse: Side
    fine: Side | None


@dataclass(frozen=True)
class Plan:
    """One side of a map, as the Triton convolution that writes this side's rows reads it.

    `order`: `[n]` int64 row of each slot. `table`: `[K, n]` neighbour of each slot at each offset, -1 for none.
    `lists`, `counts`: `[tiles, K]`, `[tiles]` the offsets that occur in each tile of `height` slots. All else int32.
    """

    order: torch.Tensor
    table: torch.Tensor
    lists: torch.Tensor
    counts: torch.Tensor
    height: int


@dataclass(frozen=True)
class Tiles:
    """A kernel map for Triton.

    `coarse`: the plan that writes coarse rows. `fine`: the plan that writes fine rows; None where it is `coarse` with
    the offsets mirrored. `pairs_fine`, `pairs_coarse`: packed pairs, int32; those of offset k from `start[k]` to
    `start[k + 1]`, and room for more behind the last.
    """

    coarse: Plan
    fine: Plan | None
    pairs_fine: torch.Tensor
    pairs_coarse: torch.Tensor
    start: torch.Tensor
    n_fine: int
    n_coarse: int


def kernel_offsets(kernel: Triple) -> list[Triple]:
    """The K offsets in weight order: axis 0 fastest; odd axes centred, even axes reaching forward."""
    axes = [range(-(k // 2), k // 2 + 1) if k % 2 else range(k) for k in kernel]
    return [(a, b, c) for c, b, a in product(*axes[::-1])]


def build_pairs(fine: torch.Tensor, coarse: torch.Tensor, kernel: Triple, step: Triple, table: SortedKeys) -> Pairs:
    """The map of a convolution, for torch.

    Args:
        fine: `[V, 4]` input coordinates, those of `table`.
        coarse: `[V', 4]` output coordinates; the very same tensor for a submanifold layer.
        kernel: kernel size per axis.
        step: dilation x tensor stride of the input, per axis.
        table: rows of the fine coordinates.
    """
    offsets = [tuple(o * s for o, s in zip(offset, step, strict=True)) for offset in kernel_offsets(kernel)]
    # Rows in key order: neighbouring queries then fall on neighbouring keys, which a search rewards severalfold.
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
            found = torch.where(inside.all(1), found, -1)  # beyond the range a key would name another voxel
        hit = torch.nonzero(found >= 0).squeeze(1)
        found, rows = found[hit], order[hit]
        fine_of[k].index_copy_(0, rows, found)
        coarse_of[-1 - k if mirrored else k].index_copy_(0, found, rows)  # b = a + offset just where a = b - offset
    return Pairs(_side(fine_of), None if mirrored else _side(coarse_of))


def _side(table: torch.Tensor) -> Side:
    """The side of a table `[K, n]` of each row's neighbours, -1 for none."""
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


def build_tiles(fine: torch.Tensor, coarse: torch.Tensor, kernel: Triple, step: Triple, table: HashTable) -> Tiles:
    """The map of a convolution, for Triton; arguments as `build_pairs`. Never waits for the device."""
    volume, n, n_fine = math.prod(kernel), len(coarse), len(fine)
    mirrored = coarse is fine and all(k % 2 for k in kernel)
    int32 = {"dtype": torch.int32, "device": coarse.device}
    coarse_of = torch.full((volume, n_fine), -1, **int32)  # written only where there is a neighbour
    fine_of = coarse_of if mirrored else torch.empty((volume, n), **int32)
    if n:
        grid = (cdiv(n, ROWS), volume // 2 + 1 if mirrored else volume, 1)  # a mirrored half is written alongside
        launch(
            _look_up, grid, coarse, table.slots, table.rows, len(table.slots), fine_of, coarse_of, n, n_fine,
            *kernel, *step, MIRRORED=mirrored, BLOCK=ROWS,
        )  # fmt: skip
    bits = _bits(kernel, coarse.device)
    plan_coarse, hits = plan(fine_of, bits)
    start = (torch.empty if n else torch.zeros)(
        volume + 1, dtype=torch.int64 if volume * n >= 2**31 else torch.int32, device=coarse.device
    )
    pairs = torch.empty((2, volume * n), **int32)
    if n:
        ends = torch.cumsum(hits, 0)
        launch(_pack_pairs, (cdiv(n, ROWS), volume, 1), fine_of, ends, *pairs, start, n, VOLUME=volume, BLOCK=ROWS)
    plan_fine = None if mirrored else plan(coarse_of, bits)[0]
    return Tiles(plan_coarse, plan_fine, *pairs, start, n_fine, n)


@functools.cache
def _bits(kernel: Triple, device: torch.device) -> torch.Tensor:
    """Bit of each offset in a row's mask: the farthest offset, the rarest in any cloud, takes the top one.

    Where there are more offsets than bits, those about as far away share one.
    """
    offsets = kernel_offsets(kernel)
    by_distance = sorted(range(len(offsets)), key=lambda k: sum(o * o for o in offsets[k]))
    bits = {k: place * min(len(offsets), 62) // len(offsets) for place, k in enumerate(by_distance)}
    return torch.tensor([bits[k] for k in range(len(offsets))], dtype=torch.int32, device=device)


def tile_height(rows: int) -> int:
    """Rows a tile: where there are few, more and shorter tiles keep the device busy."""
    return 128 if rows >= 32768 else 64 if rows >= 4096 else 32


def plan(table: torch.Tensor, bits: torch.Tensor) -> tuple[Plan, torch.Tensor]:
    """Sort the rows of a table `[K, n]` by their neighbours, and list each tile's offsets.

    Returns the number of neighbours at each offset in each block of ROWS rows, too: `[K * blocks]` int64.
    """
    volume, n = table.shape
    height, blocks = tile_height(n), cdiv(n, ROWS)
    tiles = cdiv(n, height)
    rank = table.new_empty(n, dtype=torch.int32 if volume < 32 else torch.int64)
    hits = table.new_empty(volume * blocks, dtype=torch.int64)
    ordered, lists, counts = torch.empty_like(table), table.new_empty(tiles, volume), table.new_empty(tiles)
    if n:
        launch(_rank, (blocks, 1, 1), table, bits, rank, hits, n, VOLUME=volume, BLOCK=ROWS)
    order = torch.sort(rank, stable=True)[1]
    if n:
        launch(_tile, (tiles, 1, 1), table, order, ordered, lists, counts, n, VOLUME=volume, HEIGHT=height)
    return Plan(order, ordered, lists, counts, height), hits


def downsample(coordinates: torch.Tensor, stride: Triple) -> torch.Tensor:
    """The distinct `floor(c / s) * s`, in the order of first occurrence; `stride` is the output's tensor stride."""
    return _distinct(floor_to(coordinates, stride))


def reached(coarse: torch.Tensor, kernel: Triple, step: Triple) -> torch.Tensor:
    """The distinct `c + offset`, in the order of their first occurrence: where an uncached transposed layer lands."""
    offsets = torch.tensor([(0, *o) for o in kernel_offsets(kernel)], device=coarse.device, dtype=coarse.dtype)
    offsets = offsets * torch.tensor((1, *step), device=coarse.device, dtype=coarse.dtype)
    return _distinct((coarse[:, None] + offsets).reshape(-1, 4))


def _distinct(coordinates: torch.Tensor) -> torch.Tensor:
    check(coordinates)  # rounding down and reaching forward may leave the range, where keys would wrap
    distinct = Distinct(coordinates.int().contiguous())
    return distinct.collect(distinct.ends.tolist() or [0])[0]


@triton.jit
def _offset(i, size, step):
    return (i - tl.where(size % 2 == 1, size // 2, 0)) * step


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _look_up(
    coordinates, slots, slot_rows, capacity, fine_of, coarse_of, n, n_fine,
    size_x, size_y, size_z, step_x, step_y, step_z,
    MIRRORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """fine_of[k, row] = the fine row at row's coordinate + offset k, and the way back."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1)
    inside = row < n
    batch = tl.load(coordinates + row * 4, mask=inside, other=0)
    x = tl.load(coordinates + row * 4 + 1, mask=inside, other=0) + _offset(k % size_x, size_x, step_x)
    y = tl.load(coordinates + row * 4 + 2, mask=inside, other=0) + _offset(k // size_x % size_y, size_y, step_y)
    z = tl.load(coordinates + row * 4 + 3, mask=inside, other=0) + _offset(k // (size_x * size_y), size_z, step_z)
    searching = inside & in_range(x, y, z)
    found = find(key_of(batch, x, y, z), searching, slots, slot_rows, capacity)
    hit = found >= 0
    k = k.to(tl.int64)
    tl.store(fine_of + k * n + row, found, mask=inside)
    if MIRRORED:
        last = size_x * size_y * size_z - 1
        tl.store(fine_of + (last - k) * n + found, row.to(tl.int32), mask=hit)
    else:
        tl.store(coarse_of + k * n_fine + found, row.to(tl.int32), mask=hit)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _pack_pairs(table, ends, pairs_fine, pairs_coarse, start, n, VOLUME: tl.constexpr, BLOCK: tl.constexpr):
    """Write each neighbour to its place among the pairs: offset after offset, and in each row after row."""
    block = tl.program_id(0)
    k = tl.program_id(1).to(tl.int64)
    row = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(table + k * n + row, mask=row < n, other=-1)
    hit = (found >= 0).to(tl.int32)
    end = tl.load(ends + k * tl.num_programs(0) + block)
    place = end - tl.sum(hit, 0) + tl.cumsum(hit, 0) - 1
    tl.store(pairs_fine + place, found, mask=found >= 0)
    tl.store(pairs_coarse + place, row.to(tl.int32), mask=found >= 0)
    if block == 0:
        tl.store(start + k, (end - tl.sum(hit, 0)).to(start.dtype.element_ty))
    if (block == tl.num_programs(0) - 1) & (k == VOLUME - 1):
        tl.store(start + VOLUME, end.to(start.dtype.element_ty))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _rank(table, bits, rank, hits, n, VOLUME: tl.constexpr, BLOCK: tl.constexpr):
    """Place of each row's neighbour mask in the Gray sequence: next to it stand masks that differ in one offset.

    On the way, count the neighbours at each offset.
    """
    block = tl.program_id(0)
    row = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    mask = tl.zeros((BLOCK,), rank.dtype.element_ty)
    for k in range(VOLUME):
        hit = tl.load(table + tl.cast(k, tl.int64) * n + row, mask=inside, other=-1) >= 0
        mask |= hit.to(mask.dtype) << tl.load(bits + k).to(mask.dtype)
        tl.store(hits + tl.cast(k, tl.int64) * tl.num_programs(0) + block, tl.sum(hit.to(tl.int32), 0).to(tl.int64))
    mask ^= mask >> 1
    mask ^= mask >> 2
    mask ^= mask >> 4
    mask ^= mask >> 8
    mask ^= mask >> 16
    if VOLUME > 31:
        mask ^= mask >> 32
    tl.store(rank + row, mask, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _tile(table, order, ordered, lists, counts, n, VOLUME: tl.constexpr, HEIGHT: tl.constexpr):
    """Put the table's columns into order, and list the offsets that occur in each tile."""
    tile = tl.program_id(0)
    slot = tile.to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    inside = slot < n
    row = tl.load(order + slot, mask=inside, other=0)
    count = tile * 0
    for k in range(VOLUME):
        base = tl.cast(k, tl.int64) * n
        neighbour = tl.load(table + base + row, mask=inside, other=-1)
        tl.store(ordered + base + slot, neighbour, mask=inside)
        occurs = tl.max(neighbour, 0) >= 0
        tl.store(lists + tile.to(tl.int64) * VOLUME + count, k, mask=occurs)
        count += occurs.to(tl.int32)
    tl.store(counts + tile, count)
