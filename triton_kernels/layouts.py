"""Conversion of other engines' weights to ours, `[K, Cin, Cout]` with kernel axis 0 fastest, and back.

The numbers are unchanged, only their order differs. In all engines kernel axis i runs along coordinate column i + 1.
"""

import math

import torch

from triton_kernels.coordinates import triple


def from_minkowski(weight: torch.Tensor) -> torch.Tensor:
    """Ours from MinkowskiEngine's `kernel`: `[K, Cin, Cout]`, or `[Cin, Cout]` for a 1x1x1 layer of stride 1."""
    return weight[None] if weight.ndim == 2 else weight


def to_minkowski(weight: torch.Tensor) -> torch.Tensor:
    """Ours as MinkowskiEngine's `kernel`; a single offset as `[Cin, Cout]` (its strided layers: `[1, Cin, Cout]`)."""
    return weight[0] if len(weight) == 1 else weight


def from_spconv(weight: torch.Tensor) -> torch.Tensor:
    """Ours from the `weight` of spconv 2 or FlexGEMM, `[Cout, k0, k1, k2, Cin]`. Raises ValueError for other shapes."""
    if weight.ndim != 5:
        raise ValueError(f"spconv 2 keeps weights as [Cout, k0, k1, k2, Cin]; this one is {list(weight.shape)}.")
    return weight.permute(3, 2, 1, 4, 0).reshape(-1, weight.shape[4], weight.shape[0])


def to_spconv(weight: torch.Tensor, kernel_size: int | tuple[int, int, int]) -> torch.Tensor:
    """Ours as the `weight` of spconv 2 or FlexGEMM. Raises ValueError if the kernel size does not match."""
    k0, k1, k2 = _checked(weight, kernel_size)
    return weight.reshape(k2, k1, k0, *weight.shape[1:]).permute(4, 2, 1, 0, 3).contiguous()


def from_torchsparse(weight: torch.Tensor, kernel_size: int | tuple[int, int, int]) -> torch.Tensor:
    """Ours from torchsparse's `kernel`: axis 0 fastest if K is odd, else slowest. Raises as to_torchsparse."""
    weight = from_minkowski(weight)
    return _turned(weight, _checked(weight, kernel_size))


def to_torchsparse(weight: torch.Tensor, kernel_size: int | tuple[int, int, int]) -> torch.Tensor:
    """Ours as torchsparse's `kernel`. Raises ValueError if the kernel size does not match."""
    return to_minkowski(_turned(weight, _checked(weight, kernel_size)[::-1]))


def _turned(weight: torch.Tensor, sizes: tuple[int, int, int]) -> torch.Tensor:
    """The weight with its kernel axes in reverse order, if the number of offsets is even."""
    if len(weight) % 2:
        return weight
    return weight.reshape(*sizes, *weight.shape[1:]).transpose(0, 2).reshape(weight.shape)


def _checked(weight: torch.Tensor, kernel_size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    """The kernel size per axis. Raises ValueError unless it has as many offsets as the weight."""
    kernel = triple(kernel_size, "kernel_size")
    if weight.ndim != 3 or len(weight) != math.prod(kernel):
        raise ValueError(
            f"a kernel of {kernel} has a weight [{math.prod(kernel)}, Cin, Cout], not {list(weight.shape)}."
        )
    return kernel
