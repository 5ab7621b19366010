"""The hash table in Triton: open addressing, linear probing; and the distinct coordinates found with it."""

import functools

import torch
import triton
import triton.language as tl

from triton_kernels.backend import cdiv
from triton_kernels.coordinates import HIGHEST, LOWEST, SHIFT, Triple
from triton_kernels.hash_table import HashTable
from triton_kernels.kernels import UNSPECIALIZED, launch

BLOCK = 256
_EMPTY = tl.constexpr(-1)  # keys of coordinates inside the range are never negative
_NEVER = tl.constexpr(-2)  # never stored: comparing a slot with it changes nothing
_HIGHEST = tl.constexpr(2**63 - 1)
_LOW_X, _LOW_Y, _LOW_Z = (tl.constexpr(low) for low in LOWEST[1:])
_HIGH_X, _HIGH_Y, _HIGH_Z = (tl.constexpr(high) for high in HIGHEST[1:])
_SHIFT_B, _SHIFT_X, _SHIFT_Y = (tl.constexpr(shift) for shift in SHIFT[:3])


class Hashing:
    """Distinct coordinates by a hash table for each level; see hash_table.distinct."""

    def __init__(self, coordinates: torch.Tensor, strides: tuple[Triple, ...]):
        n, levels, device = len(coordinates), len(strides), coordinates.device
        capacity = 1 << max(2 * n - 1, 1).bit_length()  # at most half full, so that probes are short and end
        self.coordinates, self.strides, self.grid = coordinates, _on(device, strides), (cdiv(n, BLOCK), levels, 1)
        self.slots = torch.full((levels, capacity), _EMPTY.value, dtype=torch.int64, device=device)
        self.rows = torch.full((levels, capacity), 2**31 - 1, dtype=torch.int32, device=device)
        self.places, first = torch.empty((2, levels, n), dtype=torch.int32, device=device)
        where = (self.places, n, capacity)
        launch(_insert, self.grid, coordinates, self.strides, self.slots, self.rows, *where, BLOCK=BLOCK)
        launch(_mark, self.grid, self.rows, first, *where, BLOCK=BLOCK)
        dtype = torch.int32 if levels * n < 2**31 else torch.int64
        self.numbers = torch.cumsum(first.view(-1), 0, dtype=dtype)  # flat: GPUs are slow to scan a few long rows
        self.ends = self.numbers.view(levels, n)[:, -1:].flatten()

    def collect(self, ends: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[HashTable]]:
        n, device = len(self.coordinates), self.coordinates.device
        found, numbers = torch.empty((ends[-1], 4), dtype=torch.int32, device=device), torch.empty_like(self.rows)
        first, inverse = (torch.empty(size, dtype=torch.int64, device=device) for size in (ends[0], n))
        launch(
            _collect, self.grid, self.coordinates, self.strides, self.rows, self.numbers, found, first, inverse,
            numbers, self.places, n, numbers.shape[1], BLOCK=BLOCK,
        )  # fmt: skip
        return found, first, inverse, [HashTable(*level) for level in zip(self.slots, numbers, strict=True)]


@functools.cache
def _on(device: torch.device, strides: tuple[Triple, ...]) -> torch.Tensor:
    """The strides `[L, 3]` int32 on the device, copied once a process, because copying waits for the device."""
    return torch.tensor(strides, dtype=torch.int32, device=device)


@triton.jit
def key_of(batch, x, y, z):
    """Key of int32 coordinates inside the range."""
    b = batch.to(tl.int64) << _SHIFT_B
    x = (x - _LOW_X).to(tl.int64) << _SHIFT_X
    y = (y - _LOW_Y).to(tl.int64) << _SHIFT_Y
    return b | x | y | (z - _LOW_Z).to(tl.int64)


@triton.jit
def in_range(x, y, z):
    """Whether spatial coordinates fit the key."""
    low = (x >= _LOW_X) & (y >= _LOW_Y) & (z >= _LOW_Z)
    return low & (x <= _HIGH_X) & (y <= _HIGH_Y) & (z <= _HIGH_Z)


@triton.jit
def _floor(c, stride):
    rest = c % stride  # has the sign of c, as in C
    return c - tl.where(rest < 0, rest + stride, rest)


@triton.jit
def _rounded(coordinates, row, inside, stride):
    """The coordinates of rows, rounded down to the stride, a pointer to three int32."""
    at = coordinates + row.to(tl.int64) * 4
    x = _floor(tl.load(at + 1, mask=inside, other=0), tl.load(stride))
    y = _floor(tl.load(at + 2, mask=inside, other=0), tl.load(stride + 1))
    z = _floor(tl.load(at + 3, mask=inside, other=0), tl.load(stride + 2))
    return tl.load(at, mask=inside, other=0), x, y, z


@triton.jit
def _slot(key, capacity):
    """The slot where probing starts: splitmix64's finalizer modulo the capacity, a power of two."""
    h = key.to(tl.uint64)
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB
    h = h ^ (h >> 31)
    return h.to(tl.int64) & (capacity - 1)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _insert(coordinates, strides, slots, slot_rows, places, n, capacity, BLOCK: tl.constexpr):
    """Put each row's key into its level's table, with the first row that has it; places[level, row] = its slot."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1).to(tl.int64)
    slots += level * capacity
    slot_rows += level * capacity
    inside = row < n
    searching = inside
    batch, x, y, z = _rounded(coordinates, row, inside, strides + level * 3)
    # Coordinates out of range raise an error later, when the host reads their span; meanwhile no key may be negative.
    key = key_of(batch, x, y, z) & _HIGHEST
    slot = _slot(key, capacity)
    while tl.max(searching.to(tl.int32), 0) > 0:
        # atomic_cas takes no mask, so a lane that has finished compares with a value that is never stored
        before = tl.atomic_cas(slots + slot, tl.where(searching, key * 0 + _EMPTY, _NEVER), key)
        mine = searching & ((before == _EMPTY) | (before == key))
        tl.atomic_min(slot_rows + slot, row, mask=mine)  # the smallest row wins, in whatever order lanes run
        searching = searching & (before != _EMPTY) & (before != key)
        slot = tl.where(searching, (slot + 1) & (capacity - 1), slot)
    tl.store(places + level * n + row, slot.to(tl.int32), mask=inside)


@triton.jit
def find(key, searching, slots, slot_rows, capacity):
    """Row of each key, -1 if no slot holds it or it is not `searching`."""
    slot = _slot(key, capacity)
    found = tl.full(key.shape, -1, tl.int32)
    while tl.max(searching.to(tl.int32), 0) > 0:
        here = tl.load(slots + slot, mask=searching, other=_EMPTY)
        hit = searching & (here == key)
        found = tl.where(hit, tl.load(slot_rows + slot, mask=hit, other=-1), found)
        searching = searching & (here != _EMPTY) & (here != key)
        slot = (slot + 1) & (capacity - 1)
    return found


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _mark(slot_rows, marks, places, n, capacity, BLOCK: tl.constexpr):
    """marks[level, row] = whether the row is the first with its key."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1).to(tl.int64)
    inside = row < n
    place = tl.load(places + level * n + row, mask=inside, other=0)
    first = tl.load(slot_rows + level * capacity + place, mask=inside, other=-1)
    tl.store(marks + level * n + row, (first == row).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _collect(
    coordinates, strides, slot_rows, ends, found, first_rows, inverse, slot_numbers, places, n, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the distinct coordinates of all levels, and into each one's slot its number within its level."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1).to(tl.int64)
    inside = row < n
    slot = level * capacity + tl.load(places + level * n + row, mask=inside, other=0)
    first = tl.load(slot_rows + slot, mask=inside, other=0)
    place = tl.load(ends + level * n + first, mask=inside, other=1) - 1
    before = tl.where(level > 0, tl.load(ends + tl.maximum(level * n - 1, 0)), 0)
    mine = inside & (first == row)
    batch, x, y, z = _rounded(coordinates, row, mine, strides + level * 3)
    at = found + place.to(tl.int64) * 4
    tl.store(at, batch, mask=mine)
    tl.store(at + 1, x, mask=mine)
    tl.store(at + 2, y, mask=mine)
    tl.store(at + 3, z, mask=mine)
    tl.store(slot_numbers + slot, (place - before).to(tl.int32), mask=mine)
    if level == 0:
        tl.store(first_rows + place, row.to(tl.int64), mask=mine)
        tl.store(inverse + row, place.to(tl.int64), mask=inside)
