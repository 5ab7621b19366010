"""The one place that chooses how the engine computes: Triton kernels, or torch operations that run anywhere."""

import contextlib
import os
from collections.abc import Iterator

import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what Triton 3.9 does anyway, with a warning at every start
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton, too, reads it once: when a kernel is defined
# Sizes that differ from batch to batch: Triton would compile a kernel again for each that is 1 or a multiple of 16.
UNSPECIALIZED = "n n_fine capacity size_x size_y size_z step_x step_y step_z share programs".split()
_forced: list[str] = []
_compiled: dict[tuple, object] = {}


def uses_triton(device: torch.device, dtype: torch.dtype | None = None) -> bool:
    """Whether Triton kernels compute on `device`: on every GPU, but not in float64, which they do not know."""
    if dtype == torch.float64:
        return False
    return _forced[-1] == "triton" if _forced else device.type == "cuda"


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Within it `triton` or `torch` computes, whatever the device: to compare the two. ValueError for other names.

    Triton on a CPU needs its interpreter: TRITON_INTERPRET=1 in the environment before this package is imported.
    """
    if name not in ("triton", "torch"):
        raise ValueError(f"the backends are triton and torch, not {name!r}.")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def describe(device: torch.device) -> str:
    """What runs on `device`, in a few words for a start block."""
    if uses_triton(device):
        return f"sparse convolution in Triton on {device} (hash table, masked implicit GEMM)"
    return f"sparse convolution in PyTorch on {device} (gather, matmul, add up)"


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own takes 2 us."""
    return -(-a // b)


def launch(kernel, grid: tuple[int, int, int], *arguments, warps: int = 4, stages: int = 3, **constants) -> None:
    """Launch a Triton kernel; `constants` in the order of its parameters, behind all `arguments`.

    What was compiled is found again by all that Triton itself distinguishes: types, alignment of pointers, integers
    beyond 32 bits. Its own search takes 14 us a launch, this 8: a training step of few scans waits for its launches.
    """
    key = (id(kernel), arguments[0].device, warps, stages, *constants.values(), *map(_sort, arguments))
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
    elif key in _compiled:
        _compiled[key][grid](*arguments, *constants.values())
    else:
        _compiled[key] = kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages)


def _sort(argument: torch.Tensor | int | float) -> tuple | int | None:
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16
    return argument >> 31 if isinstance(argument, int) else None
