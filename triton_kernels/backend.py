"""The one place that chooses how the engine computes: Triton kernels, or torch operations that run anywhere."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import torch
from triton.runtime import driver

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what Triton 3.9 does anyway, with a warning at every start
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton, too, reads it once: when a kernel is defined
# Sizes that differ from batch to batch: Triton would compile a kernel again for each that is 1 or a multiple of 16.
UNSPECIALIZED = "n n_fine capacity size_x size_y size_z step_x step_y step_z share programs".split()
_forced: list[str] = []
_compiled: dict[tuple, object] = {}
# Raw operators called by autograd.Function: torch.library's own register_autograd takes 65 us more a call.
library = torch.library.Library("triton_kernels", "DEF")


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
    beyond 32 bits. Its own search takes 14 us a launch, this 3: a training step of few scans waits for its launches.
    Raises ValueError where the arguments are on another GPU than the current one.
    """
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    device, values = arguments[0].device, []
    key = [id(kernel), device, warps, stages, *constants.values()]
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            values.append(argument.data_ptr())  # given the tensor, Triton would ask again, and the driver as well
            key += argument.dtype, values[-1] % 16
        else:
            key.append(argument >> 31 if isinstance(argument, int) else None)
            values.append(argument)
    if (key := tuple(key)) in _compiled:
        c, stream = _compiled[key], driver.active.get_current_stream(device.index)
        # as Triton's own `c[grid](...)`, without its hooks, which profilers of the device do not need
        c.run(*grid, stream, c.function, c.packed_metadata, None, None, None, *values, *constants.values())
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise ValueError(f"features lie on {device}, which is not the current GPU; call torch.cuda.set_device first.")
    _compiled[key] = kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages)


def like(x: torch.Tensor, wanted: bool) -> torch.Tensor:
    """An empty tensor like `x`; without rows unless `wanted`, for operators return no None."""
    return torch.empty_like(x if wanted else x[:0])


def operator(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Register a function as the torch operator of `schema`; `fake` returns its results' shapes, as empty tensors.

    Where nothing traces, a call goes straight to the function: torch's dispatcher takes 5 us. So it does with options,
    which are no part of the schema (operators take no process group).
    """

    def register(function: Callable) -> Callable:
        name = library.define(schema)
        library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"triton_kernels::{name}", fake, lib=library)
        traced = getattr(torch.ops.triton_kernels, name)

        @functools.wraps(function)
        def call(*arguments, **options):
            if options or (type(arguments[0]) is torch.Tensor and not torch.compiler.is_compiling()):
                return function(*arguments, **options)
            return traced(*arguments)

        return call

    return register
