"""(batch, x, y, z) <-> one int64 key, and the stride arithmetic of tensor strides."""

import torch
import triton
import triton.language as tl

BITS = (10, 18, 18, 17)  # of batch, x, y, z; 63 in all, so that keys are never negative
LOWEST = tuple([0] + [-(1 << (b - 1)) for b in BITS[1:]])
HIGHEST = tuple(low + (1 << b) - 1 for low, b in zip(LOWEST, BITS, strict=True))
SHIFT = (53, 35, 17, 0)
Triple = tuple[int, int, int]


def triple(value, name: str) -> Triple:
    """An int, or one int per axis, as three ints >= 1."""
    values = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"{name} must be a whole number above 0, or three of them; it is {value!r}.")
    return values


def check(coordinates: torch.Tensor) -> None:
    """Raise if the coordinates are no `[V, 4]` integers, or lie outside the key's range. Waits for the device."""
    if coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise ValueError(f"coordinates must be [V, 4] (batch, x, y, z); they are {list(coordinates.shape)}.")
    if coordinates.is_floating_point() or coordinates.dtype == torch.bool:
        raise TypeError(f"coordinates must be integers, they are {coordinates.dtype}; floor them first.")
    if len(coordinates):
        check_span(*torch.stack((coordinates.amin(0), coordinates.amax(0))).tolist())


def check_span(low: list[int], high: list[int]) -> None:
    """Raise ValueError unless the smallest and largest coordinates, one a column, fit the key."""
    for axis in range(4):
        if low[axis] < LOWEST[axis] or high[axis] > HIGHEST[axis]:
            raise ValueError(
                f"coordinate {'bxyz'[axis]} spans {low[axis]} to {high[axis]}, "
                f"only {LOWEST[axis]} to {HIGHEST[axis]} fit; move or coarsen the cloud."
            )


def floor_to(coordinates: torch.Tensor, stride: Triple) -> torch.Tensor:
    """`floor(c / s) * s` per spatial axis, towards minus infinity; the batch stays."""
    if stride == (1, 1, 1):
        return coordinates
    axes = (torch.div(coordinates[:, i + 1], s, rounding_mode="floor") * s for i, s in enumerate(stride))
    return torch.stack((coordinates[:, 0], *axes), 1)


def pack(coordinates: torch.Tensor, stride: Triple = (1, 1, 1)) -> torch.Tensor:
    """`[V, 4]` integers inside the range -> keys `[V]` int64 of their floors, ordered like the tuples."""
    b, x, y, z = floor_to(coordinates, stride).long().unbind(1)
    return (b << SHIFT[0]) + (x << SHIFT[1]) + (y << SHIFT[2]) + (z - key_offset(LOWEST[1:]))


def unpack(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[V]` -> coordinates `[V, 4]` int32: the way back from `pack`."""
    columns = (((keys >> s) & ((1 << b) - 1)) + low for s, b, low in zip(SHIFT, BITS, LOWEST, strict=True))
    return torch.stack([c.int() for c in columns], 1)


def key_offset(offset: Triple) -> int:
    """What to add to a key to move by `offset` voxels (as long as no axis leaves its range)."""
    return sum(o << s for o, s in zip(offset, SHIFT[1:], strict=True))


_LOW_X, _LOW_Y, _LOW_Z = (tl.constexpr(low) for low in LOWEST[1:])
_HIGH_X, _HIGH_Y, _HIGH_Z = (tl.constexpr(high) for high in HIGHEST[1:])
_SHIFT_B, _SHIFT_X, _SHIFT_Y = (tl.constexpr(shift) for shift in SHIFT[:3])


@triton.jit
def key_of(batch, x, y, z):
    """Key of int32 coordinates inside the range."""
    b = batch.to(tl.int64) << _SHIFT_B
    x = (x - _LOW_X).to(tl.int64) << _SHIFT_X
    y = (y - _LOW_Y).to(tl.int64) << _SHIFT_Y
    return b | x | y | (z - _LOW_Z).to(tl.int64)


@triton.jit
def in_range(x, y, z):
    """Whether spatial coordinates have a key."""
    low = (x >= _LOW_X) & (y >= _LOW_Y) & (z >= _LOW_Z)
    return low & (x <= _HIGH_X) & (y <= _HIGH_Y) & (z <= _HIGH_Z)


@triton.jit
def _floor(c, stride):
    rest = c % stride  # has the sign of c, as in C
    return c - tl.where(rest < 0, rest + stride, rest)


@triton.jit
def rounded(coordinates, row, inside, stride):
    """Coordinates of rows, rounded down to the stride: three int32 in memory."""
    at = coordinates + row.to(tl.int64) * 4
    x = _floor(tl.load(at + 1, mask=inside, other=0), tl.load(stride))
    y = _floor(tl.load(at + 2, mask=inside, other=0), tl.load(stride + 1))
    z = _floor(tl.load(at + 3, mask=inside, other=0), tl.load(stride + 2))
    return tl.load(at, mask=inside, other=0), x, y, z
