"""Coordinates (batch, x, y, z) packed into one int64 key, and rounding to tensor strides."""

import torch

BITS = (10, 18, 18, 17)  # of batch, x, y, z: 63 in all, so that keys are never negative
LOWEST = tuple([0] + [-(1 << (b - 1)) for b in BITS[1:]])
HIGHEST = tuple(low + (1 << b) - 1 for low, b in zip(LOWEST, BITS, strict=True))
SHIFT = (53, 35, 17, 0)
Triple = tuple[int, int, int]


def triple(value, name: str) -> Triple:
    """An int, or one per axis, as three ints. Raises ValueError, with the argument's `name`, unless all are above 0."""
    values = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"{name} must be a whole number above 0, or three of them; it is {value!r}.")
    return values


def check(coordinates: torch.Tensor) -> None:
    """Check that coordinates are `[V, 4]` integers that fit the key. Waits for the device.

    Raises TypeError if they are not integers, ValueError for another shape or a coordinate out of range.
    """
    if coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise ValueError(f"coordinates must be [V, 4] (batch, x, y, z); they are {list(coordinates.shape)}.")
    if coordinates.is_floating_point() or coordinates.dtype == torch.bool:
        raise TypeError(f"coordinates must be integers, they are {coordinates.dtype}; floor them first.")
    if len(coordinates):
        check_span(*torch.stack((coordinates.amin(0), coordinates.amax(0))).tolist())


def check_span(low: list[int], high: list[int]) -> None:
    """Raise ValueError unless the smallest and largest value of each column fit the key."""
    for axis in range(4):
        if low[axis] < LOWEST[axis] or high[axis] > HIGHEST[axis]:
            raise ValueError(
                f"coordinate {'bxyz'[axis]} spans {low[axis]} to {high[axis]}, "
                f"only {LOWEST[axis]} to {HIGHEST[axis]} fit; move or coarsen the cloud."
            )


def floor_to(coordinates: torch.Tensor, stride: Triple) -> torch.Tensor:
    """`floor(c / s) * s` on each spatial axis of `[V, 4]`, rounding towards minus infinity; the batch is unchanged."""
    if stride == (1, 1, 1):
        return coordinates
    axes = (torch.div(coordinates[:, i + 1], s, rounding_mode="floor") * s for i, s in enumerate(stride))
    return torch.stack((coordinates[:, 0], *axes), 1)


def pack(coordinates: torch.Tensor, stride: Triple = (1, 1, 1)) -> torch.Tensor:
    """Keys `[V]` int64 of coordinates `[V, 4]` rounded down to the stride; they sort as the coordinates do."""
    b, x, y, z = floor_to(coordinates, stride).long().unbind(1)
    return (b << SHIFT[0]) + (x << SHIFT[1]) + (y << SHIFT[2]) + (z - key_offset(LOWEST[1:]))


def unpack(keys: torch.Tensor) -> torch.Tensor:
    """Coordinates `[V, 4]` int32 of keys `[V]`: the inverse of `pack`."""
    columns = (((keys >> s) & ((1 << b) - 1)) + low for s, b, low in zip(SHIFT, BITS, LOWEST, strict=True))
    return torch.stack([c.int() for c in columns], 1)


def key_offset(offset: Triple) -> int:
    """What to add to a key to move it by `offset` voxels, as long as no axis leaves its range."""
    return sum(o << s for o, s in zip(offset, SHIFT[1:], strict=True))
