"""Kernel maps in Triton: neighbours by hash table, rows sorted into tiles, pairs packed; never waits for the device."""

import functools
import math

import torch
import triton
import triton.language as tl

from triton_kernels.backend import cdiv
from triton_kernels.coordinates import Triple
from triton_kernels.hash_table import HashTable
from triton_kernels.kernel_map import Plan, Tiles, kernel_offsets
from triton_kernels.kernels import UNSPECIALIZED, launch
from triton_kernels.kernels.hash_table import find, in_range, key_of

BLOCK = 256  # rows that one program looks up, ranks or packs


def build_tiles(fine: torch.Tensor, coarse: torch.Tensor, kernel: Triple, step: Triple, table: HashTable) -> Tiles:
    """The map of a convolution, for Triton; arguments as those of kernel_map.build_pairs."""
    volume, n, n_fine = math.prod(kernel), len(coarse), len(fine)
    mirrored = coarse is fine and all(k % 2 for k in kernel)
    int32 = {"dtype": torch.int32, "device": coarse.device}
    coarse_of = torch.full((volume, n_fine), -1, **int32)  # written only where there is a neighbour
    fine_of = coarse_of if mirrored else torch.empty((volume, n), **int32)
    looked_up = volume // 2 + 1 if mirrored else volume  # a neighbour found in one half of a mirrored map fills both
    if n:
        launch(
            _look_up, (cdiv(n, BLOCK), looked_up, 1), coarse, table.slots, table.rows, len(table.slots), fine_of,
            coarse_of, n, n_fine, *kernel, *step, MIRRORED=mirrored, BLOCK=BLOCK,
        )  # fmt: skip
    bits = _bits(kernel, coarse.device)
    plan_coarse, hits = plan(fine_of, bits)
    pairs, dtype = torch.empty((2, volume * n), **int32), torch.int64 if volume * n >= 2**31 else torch.int32
    start = (torch.empty if n else torch.zeros)(volume + 1, dtype=dtype, device=coarse.device)
    if n:
        ends = torch.cumsum(hits, 0)
        launch(_pack_pairs, (cdiv(n, BLOCK), volume, 1), fine_of, ends, *pairs, start, n, VOLUME=volume, BLOCK=BLOCK)
    plan_fine = None if mirrored else plan(coarse_of, bits)[0]
    return Tiles(plan_coarse, plan_fine, *pairs, start, n_fine, n)


@functools.cache
def _bits(kernel: Triple, device: torch.device) -> torch.Tensor:
    """The bit of each offset in a row's mask, `[K]` int32: the farthest offset, rarest in any cloud, has the top one.

    With more offsets than bits, offsets at about the same distance share one.
    """
    offsets = kernel_offsets(kernel)
    by_distance = sorted(range(len(offsets)), key=lambda k: sum(o * o for o in offsets[k]))
    bits = {k: place * min(len(offsets), 62) // len(offsets) for place, k in enumerate(by_distance)}
    return torch.tensor([bits[k] for k in range(len(offsets))], dtype=torch.int32, device=device)


def tile_height(rows: int) -> int:
    """Rows of a tile. For a small cloud more and shorter tiles keep the device busy."""
    return 128 if rows >= 32768 else 64 if rows >= 4096 else 32


def plan(table: torch.Tensor, bits: torch.Tensor) -> tuple[Plan, torch.Tensor]:
    """Sort the rows of a table `[K, n]` by their neighbours, and list the offsets of each tile.

    Also returns the number of neighbours at each offset in each block of BLOCK rows, `[K * blocks]` int64.
    """
    volume, n = table.shape
    height, blocks = tile_height(n), cdiv(n, BLOCK)
    tiles = cdiv(n, height)
    rank = table.new_empty(n, dtype=torch.int32 if volume < 32 else torch.int64)
    hits = table.new_empty(volume * blocks, dtype=torch.int64)
    ordered, lists, counts = torch.empty_like(table), table.new_empty(tiles, volume), table.new_empty(tiles)
    if n:
        launch(_rank, (blocks, 1, 1), table, bits, rank, hits, n, VOLUME=volume, BLOCK=BLOCK)
    order = torch.sort(rank, stable=True)[1]
    if n:
        launch(_tile, (tiles, 1, 1), table, order, ordered, lists, counts, n, VOLUME=volume, BLOCK_M=height)
    return Plan(order, ordered, lists, counts, height), hits


@triton.jit
def _offset(i, size, step):
    return (i - tl.where(size % 2 == 1, size // 2, 0)) * step


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _look_up(
    coordinates, slots, slot_rows, capacity, fine_of, coarse_of, n, n_fine,
    size_x, size_y, size_z, step_x, step_y, step_z,
    MIRRORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """fine_of[k, row] = the fine row at the row's coordinate + offset k, and coarse_of[k, fine row] = the row."""
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
    """Pack the pairs, sorted by offset, then by row; start[k] = where those of offset k begin."""
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
    """Rank of each row: its neighbour mask's position in the Gray sequence, where adjacent masks differ by one bit.

    Also counts the neighbours at each offset.
    """
    block = tl.program_id(0)
    row = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    mask = tl.zeros((BLOCK,), rank.dtype.element_ty)
    for k in range(VOLUME):
        hit = tl.load(table + tl.cast(k, tl.int64) * n + row, mask=inside, other=-1) >= 0
        mask |= hit.to(mask.dtype) << tl.load(bits + k).to(mask.dtype)
        tl.store(hits + tl.cast(k, tl.int64) * tl.num_programs(0) + block, tl.sum(hit.to(tl.int32), 0).to(tl.int64))
    for i in tl.static_range(6 if VOLUME > 31 else 5):
        mask ^= mask >> (1 << i)
    tl.store(rank + row, mask, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _tile(table, order, ordered, lists, counts, n, VOLUME: tl.constexpr, BLOCK_M: tl.constexpr):
    """Sort the table's columns, and list the offsets that occur in each tile."""
    tile = tl.program_id(0)
    slot = tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
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
