"""The one place that chooses how the engine computes: Triton kernels, or torch operations that run anywhere."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

_forced: list[str] = []
# autograd.Function calls these operators: torch.library's own register_autograd adds 65 us to each call.
library = torch.library.Library("triton_kernels", "DEF")


def uses_triton(device: torch.device, dtype: torch.dtype | None = None) -> bool:
    """Whether Triton kernels compute on `device`: on every GPU, except in float64, which they do not support."""
    if dtype == torch.float64:
        return False
    return _forced[-1] == "triton" if _forced else device.type == "cuda"


@functools.cache  # imported once: every later call takes 0.1 us
def kernels(operation: str) -> ModuleType:
    """The module triton_kernels.kernels.`operation`, imported at its first use: without a GPU torch alone is enough.

    Raises ImportError if Triton is not installed.
    """
    try:
        return importlib.import_module(f"triton_kernels.kernels.{operation}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        raise ImportError(f"{_NEEDED}.") from error


_NEEDED = "sparse convolution on a GPU needs Triton, which is not installed: pip install 'triton>=3.6,<4'"


def can_compute(device: torch.device) -> bool:
    """Whether what computes on `device` is installed; if not, `describe` says what is missing."""
    return not uses_triton(device) or importlib.util.find_spec("triton") is not None


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Compute with `triton` or `torch` inside this context, whatever the device, to compare the two.

    Triton on a CPU needs its interpreter: set TRITON_INTERPRET=1 in the environment before Python starts. Raises
    ValueError for any other name.
    """
    if name not in ("triton", "torch"):
        raise ValueError(f"the backends are triton and torch, not {name!r}.")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def describe(device: torch.device) -> str:
    """What computes on `device`, in a few words for the block that a run prints at its start."""
    if not can_compute(device):
        return _NEEDED
    if uses_triton(device):
        return f"sparse convolution in Triton on {device} (hash table, masked implicit GEMM)"
    return f"sparse convolution in PyTorch on {device} (gather, matmul, add up)"


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own takes 2 us."""
    return -(-a // b)


def like(x: torch.Tensor, wanted: bool) -> torch.Tensor:
    """An empty tensor like `x`, or one without rows if it is not wanted: an operator cannot return None."""
    return torch.empty_like(x if wanted else x[:0])


def operator(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Register a function as the torch operator of `schema`; `fake` returns empty tensors in the shapes of its results.

    Unless something traces, a call goes straight to the function, because torch's dispatcher takes 5 us. So does a
    call with keyword options, which are not in the schema: no operator takes a process group.
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
