"""Keys -> rows: open addressing in Triton, a sorted copy of the keys in torch. Both find the first row of a key."""

import torch
import triton
import triton.language as tl

from triton_kernels.backend import UNSPECIALIZED, uses_triton

BLOCK = 256
_EMPTY = tl.constexpr(-1)  # keys of coordinates inside the range are never negative
_NEVER = tl.constexpr(-2)  # stored nowhere: a lane that compares with it changes nothing


class HashTable:
    """Looks up the first row of each key.

    Args:
        keys: `[V]` int64; a key that occurs again has the row of its first occurrence.
    """

    def __init__(self, keys: torch.Tensor):
        self.size = len(keys)
        if not uses_triton(keys.device):
            self.keys, self.rows = torch.sort(keys, stable=True)
            return
        self.capacity = triton.next_power_of_2(max(2 * self.size, 2))  # at most half full: probes stay short, and end
        self.keys = torch.full((self.capacity,), _EMPTY.value, dtype=torch.int64, device=keys.device)
        self.rows = torch.full((self.capacity,), 2**31 - 1, dtype=torch.int32, device=keys.device)
        if self.size:
            grid = (triton.cdiv(self.size, BLOCK),)
            _insert[grid](keys, self.keys, self.rows, self.size, self.capacity, BLOCK=BLOCK)

    def find(self, keys: torch.Tensor) -> torch.Tensor:
        """Row `[M]` int64 of each key `[M]`, or -1 where it is not in the table."""
        if self.size == 0:
            return torch.full_like(keys, -1)
        if not uses_triton(keys.device):
            place = torch.searchsorted(self.keys, keys).clamp_(max=self.size - 1)
            return torch.where(self.keys[place] == keys, self.rows[place], -1)
        found = torch.empty_like(keys)
        if len(keys):
            grid = (triton.cdiv(len(keys), BLOCK),)
            _find[grid](keys, self.keys, self.rows, found, len(keys), self.capacity, BLOCK=BLOCK)
        return found


def distinct(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The distinct keys of `[N]`, numbered in the order of their first occurrence, without waiting for the device.

    Returns the number of each row's key `[N]` int64, whether the row is its key's first `[N]`, and how many keys there
    are `[1]`.
    """
    rows = torch.arange(len(keys), device=keys.device)
    owner = HashTable(keys).find(keys)
    first = owner == rows
    number = torch.cumsum(first, 0)
    return (number - 1)[owner], first, number[-1:] if len(keys) else rows.new_zeros(1)


def first_rows(number: torch.Tensor, first: torch.Tensor, count: int) -> torch.Tensor:
    """Row of each distinct key's first occurrence `[count]`, from what `distinct` returns."""
    rows = torch.arange(len(number), device=number.device)
    spare = torch.where(first, number, count)  # one row past the end takes what is no first occurrence
    return torch.zeros(count + 1, dtype=torch.int64, device=number.device).scatter_(0, spare, rows)[:count]


@triton.jit
def _slot(key, capacity):
    """Where probing starts: splitmix64's finalizer, cut to the capacity (a power of two)."""
    h = key.to(tl.uint64)
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB
    h = h ^ (h >> 31)
    return h.to(tl.int64) & (capacity - 1)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _insert(keys, slots, slot_rows, n, capacity, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    searching = row < n
    key = tl.load(keys + row, mask=searching, other=0)
    slot = _slot(key, capacity)
    while tl.max(searching.to(tl.int32), 0) > 0:
        # atomic_cas takes no mask, so a lane that is done compares with a value that is never stored
        before = tl.atomic_cas(slots + slot, tl.where(searching, key * 0 + _EMPTY, _NEVER), key)
        mine = searching & ((before == _EMPTY) | (before == key))
        tl.atomic_min(slot_rows + slot, row, mask=mine)  # whoever comes last, the smallest row stays
        searching = searching & (before != _EMPTY) & (before != key)
        slot = tl.where(searching, (slot + 1) & (capacity - 1), slot)


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
def _find(keys, slots, slot_rows, found, n, capacity, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    key = tl.load(keys + row, mask=inside, other=0)
    tl.store(found + row, find(key, inside, slots, slot_rows, capacity).to(tl.int64), mask=inside)
