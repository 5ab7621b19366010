"""Coordinates -> rows: a hash table with open addressing for Triton, sorted keys for torch. Distinct coordinates."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from triton_kernels.backend import UNSPECIALIZED, cdiv, launch, uses_triton
from triton_kernels.coordinates import Triple, key_of, pack, rounded, unpack

BLOCK = 256
_EMPTY = tl.constexpr(-1)  # keys of coordinates inside the range are never negative
_NEVER = tl.constexpr(-2)  # stored nowhere: a lane that compares with it changes nothing
_HIGHEST = tl.constexpr(2**63 - 1)


@dataclass(frozen=True)
class SortedKeys:
    """Torch's table: sorted keys `[V]` and their rows `[V]`, int64. Of equal keys the first one's row is found."""

    keys: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, coordinates: torch.Tensor) -> SortedKeys:
        """The table of coordinates `[V, 4]`."""
        return cls(*torch.sort(pack(coordinates), stable=True))

    def find(self, keys: torch.Tensor) -> torch.Tensor:
        """Row `[M]` int64 of each key `[M]`, or -1 where it is not in the table."""
        if not len(self.keys):
            return torch.full_like(keys, -1)
        place = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, self.rows[place], -1)


@dataclass(frozen=True)
class HashTable:
    """Triton's table: the keys in its slots `[capacity]` int64, and their rows `[capacity]` int32."""

    slots: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, coordinates: torch.Tensor) -> HashTable:
        """The table of coordinates `[V, 4]` int32, all different."""
        return Distinct(coordinates).collect([len(coordinates)])[-1][0]


class Distinct:
    """The distinct coordinates of each level, in the order of first occurrence. Does not wait for the device.

    Args:
        coordinates: `[N, 4]` int32, contiguous.
        strides: what each level rounds them down to.

    `ends`: how many there are in each level and all levels before it, on the device: `[L]`, or `[0]` if N is 0.
    """

    def __init__(self, coordinates: torch.Tensor, strides: tuple[Triple, ...] = ((1, 1, 1),)):
        n, levels, device = len(coordinates), len(strides), coordinates.device
        self.grid, self.coordinates = (cdiv(n, BLOCK), levels, 1), coordinates
        if uses_triton(device):
            capacity = 1 << max(2 * n - 1, 1).bit_length()  # at most half full: probes stay short, and end
            self.strides = _on(device, strides)
            self.slots = torch.full((levels, capacity), _EMPTY.value, dtype=torch.int64, device=device)
            self.rows = torch.full((levels, capacity), 2**31 - 1, dtype=torch.int32, device=device)
            self.places, first = torch.empty((2, levels, n), dtype=torch.int32, device=device)
            where = (self.places, n, capacity)
            launch(_insert, self.grid, coordinates, self.strides, self.slots, self.rows, *where, BLOCK=BLOCK)
            launch(_mark, self.grid, self.rows, first, *where, BLOCK=BLOCK)
            word = torch.int32 if levels * n < 2**31 else torch.int64
        else:
            self.keys, rows = [pack(coordinates, stride) for stride in strides], torch.arange(n, device=device)
            self.tables = [SortedKeys(*torch.sort(level, stable=True)) for level in self.keys]
            self.owners = [table.find(level) for table, level in zip(self.tables, self.keys, strict=True)]
            first, word = torch.stack([owner == rows for owner in self.owners]), torch.int64
        self.first, self.numbers = first, torch.cumsum(first.view(-1), 0, dtype=word)  # flat: GPUs scan few rows slowly
        self.ends = self.numbers.view(levels, n)[:, -1:].flatten()

    def collect(self, ends: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list]:
        """What there is, once the host knows `ends`.

        Returns the distinct coordinates, level after level `[ends[-1], 4]` int32; the first level's rows of first
        occurrences `[ends[0]]` and numbers of all rows `[N]`, int64; and each level's table.
        """
        n, device = len(self.coordinates), self.coordinates.device
        if not uses_triton(device):
            spare = torch.where(self.first.view(-1), self.numbers - 1, ends[-1])  # no first occurrence: past the end
            at = torch.zeros(ends[-1] + 1, dtype=torch.int64, device=device)
            at = at.scatter_(0, spare, torch.arange(len(spare), device=device))[:-1]
            found = unpack(torch.cat(self.keys)[at])
            numbers, tables = self.numbers.view_as(self.first) - 1, []
            for table, first, number, before in zip(self.tables, self.first, numbers, (0, *ends), strict=False):
                kept = first[table.rows].nonzero().squeeze(1)  # a shorter table is searched faster
                tables.append(SortedKeys(table.keys[kept], number[table.rows[kept]] - before))
            return found, at[: ends[0]], numbers[0][self.owners[0]], tables
        found, numbers = torch.empty((ends[-1], 4), dtype=torch.int32, device=device), torch.empty_like(self.rows)
        first, inverse = (torch.empty(size, dtype=torch.int64, device=device) for size in (ends[0], n))
        launch(
            _collect, self.grid, self.coordinates, self.strides, self.rows, self.numbers, found, first, inverse,
            numbers, self.places, n, numbers.shape[1], BLOCK=BLOCK,
        )  # fmt: skip
        return found, first, inverse, [HashTable(*level) for level in zip(self.slots, numbers, strict=True)]


@functools.cache
def _on(device: torch.device, strides: tuple[Triple, ...]) -> torch.Tensor:
    """The strides `[L, 3]` int32 on the device: sent once a process, for sending waits."""
    return torch.tensor(strides, dtype=torch.int32, device=device)


@triton.jit
def _slot(key, capacity):
    """Where probing starts: splitmix64's finalizer, cut to the capacity (a power of two)."""
    h = key.to(tl.uint64)
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB
    h = h ^ (h >> 31)
    return h.to(tl.int64) & (capacity - 1)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _insert(coordinates, strides, slots, slot_rows, places, n, capacity, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1).to(tl.int64)
    slots += level * capacity
    slot_rows += level * capacity
    inside = row < n
    searching = inside
    batch, x, y, z = rounded(coordinates, row, inside, strides + level * 3)
    # Coordinates beyond the range are an error, once the host knows; until then theirs must not be an empty slot's key.
    key = key_of(batch, x, y, z) & _HIGHEST
    slot = _slot(key, capacity)
    while tl.max(searching.to(tl.int32), 0) > 0:
        # atomic_cas takes no mask, so a lane that is done compares with a value that is never stored
        before = tl.atomic_cas(slots + slot, tl.where(searching, key * 0 + _EMPTY, _NEVER), key)
        mine = searching & ((before == _EMPTY) | (before == key))
        tl.atomic_min(slot_rows + slot, row, mask=mine)  # whoever comes last, the smallest row stays
        searching = searching & (before != _EMPTY) & (before != key)
        slot = tl.where(searching, (slot + 1) & (capacity - 1), slot)
    tl.store(places + level * n + row, slot.to(tl.int32), mask=inside)


@triton.jit
def find(key, searching, slots, slot_rows, capacity):
    """Row of each key, -1 where it is in no slot or not `searching`."""
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
    """marks[level, row] = whether the row is its key's first."""
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
    """Distinct coordinates to their places among all levels', and their numbers within their level to their slots."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = tl.program_id(1).to(tl.int64)
    inside = row < n
    slot = level * capacity + tl.load(places + level * n + row, mask=inside, other=0)
    first = tl.load(slot_rows + slot, mask=inside, other=0)
    place = tl.load(ends + level * n + first, mask=inside, other=1) - 1
    before = tl.where(level > 0, tl.load(ends + tl.maximum(level * n - 1, 0)), 0)
    mine = inside & (first == row)
    batch, x, y, z = rounded(coordinates, row, mine, strides + level * 3)
    at = found + place.to(tl.int64) * 4
    tl.store(at, batch, mask=mine)
    tl.store(at + 1, x, mask=mine)
    tl.store(at + 2, y, mask=mine)
    tl.store(at + 3, z, mask=mine)
    tl.store(slot_numbers + slot, (place - before).to(tl.int32), mask=mine)
    if level == 0:
        tl.store(first_rows + place, row.to(tl.int64), mask=mine)
        tl.store(inverse + row, place.to(tl.int64), mask=inside)
