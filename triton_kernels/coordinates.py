"""(batch, x, y, z) <-> one int64 key, and the stride arithmetic of tensor strides."""

import torch

BITS = (10, 18, 18, 17)  # of batch, x, y, z; 63 in all, so that keys are never negative
LOWEST = tuple([0] + [-(1 << (b - 1)) for b in BITS[1:]])
HIGHEST = tuple(low + (1 << b) - 1 for low, b in zip(LOWEST, BITS, strict=True))
_SHIFT = (53, 35, 17, 0)


def triple(value, name: str) -> tuple[int, int, int]:
    """An int, or one int per axis, as three ints >= 1."""
    values = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"{name} must be a whole number above 0, or three of them; it is {value!r}.")
    return values


def check(coordinates: torch.Tensor) -> None:
    """Raise if the coordinates are no `[V, 4]` integers, or lie outside the key's range."""
    if coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise ValueError(f"coordinates must be [V, 4] (batch, x, y, z); they are {list(coordinates.shape)}.")
    if coordinates.is_floating_point() or coordinates.dtype == torch.bool:
        raise TypeError(f"coordinates must be integers, they are {coordinates.dtype}; floor them first.")
    if len(coordinates) == 0:
        return
    low, high = coordinates.amin(0).tolist(), coordinates.amax(0).tolist()
    for axis in range(4):
        if low[axis] < LOWEST[axis] or high[axis] > HIGHEST[axis]:
            raise ValueError(
                f"coordinate {'bxyz'[axis]} spans {low[axis]} to {high[axis]}, "
                f"only {LOWEST[axis]} to {HIGHEST[axis]} fit; move or coarsen the cloud."
            )


def pack(coordinates: torch.Tensor) -> torch.Tensor:
    """`[V, 4]` integers inside the range -> keys `[V]` int64, ordered like the coordinates' tuples."""
    c = coordinates.long()
    return sum((c[:, i] - LOWEST[i]) << _SHIFT[i] for i in range(4))


def key_offset(offset: tuple[int, int, int]) -> int:
    """What to add to a key to move by `offset` voxels (as long as no axis leaves its range)."""
    return sum(o << s for o, s in zip(offset, _SHIFT[1:], strict=True))


def floor_to(coordinates: torch.Tensor, stride: tuple[int, int, int]) -> torch.Tensor:
    """`floor(c / s) * s` per spatial axis, towards minus infinity; the batch stays."""
    s = torch.tensor((1, *stride), device=coordinates.device, dtype=coordinates.dtype)
    return torch.div(coordinates, s, rounding_mode="floor") * s
