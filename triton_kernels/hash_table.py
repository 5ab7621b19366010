"""Keys -> rows. On the torch backend a sorted copy of the keys, searched; the Triton hash table joins it here."""

import torch


class HashTable:
    """Looks up the row of each key.

    Args:
        keys: `[V]` int64, all different.
    """

    def __init__(self, keys: torch.Tensor):
        self.keys, self.rows = torch.sort(keys)
        if len(keys) > 1 and bool((self.keys[1:] == self.keys[:-1]).any()):
            raise ValueError("a coordinate occurs twice; voxelize the points first.")

    def find(self, keys: torch.Tensor) -> torch.Tensor:
        """Row of each key `[M]`, or -1 where it is not in the table."""
        if len(self.keys) == 0:
            return torch.full_like(keys, -1)
        place = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, self.rows[place], -1)
