"""Tables that find the row of a coordinate (a hash table for Triton, sorted keys for torch); distinct coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triton_kernels.backend import kernels, uses_triton
from triton_kernels.coordinates import Triple, pack, unpack


@dataclass(frozen=True)
class SortedKeys:
    """Torch's table: sorted keys `[V]` and their rows `[V]`, int64. Among equal keys the first row is found."""

    keys: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, coordinates: torch.Tensor) -> SortedKeys:
        """The table of coordinates `[V, 4]`."""
        return cls(*torch.sort(pack(coordinates), stable=True))

    def find(self, keys: torch.Tensor) -> torch.Tensor:
        """The row `[M]` int64 of each key `[M]`, -1 for a key that is not in the table."""
        if not len(self.keys):
            return torch.full_like(keys, -1)
        place = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, self.rows[place], -1)


@dataclass(frozen=True)
class HashTable:
    """Triton's table, with open addressing: keys `[capacity]` int64 in its slots, and their rows `[capacity]` int32."""

    slots: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, coordinates: torch.Tensor) -> HashTable:
        """The table of distinct coordinates `[V, 4]` int32."""
        return distinct(coordinates).collect([len(coordinates)])[-1][0]


def distinct(coordinates: torch.Tensor, strides: tuple[Triple, ...] = ((1, 1, 1),)):
    """Find the distinct coordinates of each level, in the order of first occurrence. Does not wait for the device.

    Args:
        coordinates: `[N, 4]` int32, contiguous.
        strides: the tensor stride that each level rounds them down to.

    The result has `ends`, the number of distinct coordinates in each level and all before it, on the device: `[L]`, or
    `[0]` if N is 0. Given these on the host, `collect(ends)` returns the distinct coordinates, level after level,
    `[ends[-1], 4]` int32; of the first level the row of each one's first occurrence `[ends[0]]` and the number of each
    row's coordinate `[N]`, int64; and a list of each level's table.
    """
    return (kernels("hash_table").Hashing if uses_triton(coordinates.device) else _Sorting)(coordinates, strides)


class _Sorting:
    """Distinct coordinates by sorting their keys."""

    def __init__(self, coordinates: torch.Tensor, strides: tuple[Triple, ...]):
        rows = torch.arange(len(coordinates), device=coordinates.device)
        self.keys = [pack(coordinates, stride) for stride in strides]
        self.tables = [SortedKeys(*torch.sort(level, stable=True)) for level in self.keys]
        self.owners = [table.find(level) for table, level in zip(self.tables, self.keys, strict=True)]
        self.first = torch.stack([owner == rows for owner in self.owners])
        self.numbers = torch.cumsum(self.first.view(-1), 0).view_as(self.first)
        self.ends = self.numbers[:, -1:].flatten()

    def collect(self, ends: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[SortedKeys]]:
        numbers, tables = self.numbers - 1, []
        spare = torch.where(self.first, numbers, ends[-1]).view(-1)  # all but first occurrences: past the end
        at = numbers.new_zeros(ends[-1] + 1)
        at = at.scatter_(0, spare, torch.arange(len(spare), device=at.device))[:-1]
        for table, first, number, before in zip(self.tables, self.first, numbers, (0, *ends), strict=False):
            kept = first[table.rows].nonzero().squeeze(1)  # a shorter table is searched faster
            tables.append(SortedKeys(table.keys[kept], number[table.rows[kept]] - before))
        return unpack(torch.cat(self.keys)[at]), at[: ends[0]], numbers[0][self.owners[0]], tables
