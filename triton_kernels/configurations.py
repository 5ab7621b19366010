"""Block shapes of the convolution kernels: a plain table, tuned before training by benchmarks/engine_gpu.py.

No autotuner: it costs 25 us a launch, stops a training step for minutes, and times kernels that accumulate wrongly.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch
import triton

TABLE = Path(__file__).with_name("configurations.json")


class Configuration(NamedTuple):
    """`rows` x `columns` of the output a program, `depth` of the sum a step, `splits` programs that share one sum."""

    rows: int  # of the weight's gradient; a convolution's are its plan's tile height
    columns: int
    depth: int
    splits: int
    warps: int
    stages: int


def configuration(
    operation: str, c_in: int, c_out: int, dtype: torch.dtype, rows: int, device: torch.device
) -> Configuration:
    """The tuned configuration of an operation, or a default that fits its channels.

    Args:
        operation: convolve or weight_gradient.
        c_in, c_out: channels.
        dtype: of the features.
        rows: output rows (gradient: pairs an offset, about); sizes count in powers of two.
        device: where it runs; its compute capability counts.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return _look_up(operation, c_in, c_out, str(dtype).removeprefix("torch."), max(rows, 1).bit_length(), capability)


def name(operation: str, c_in: int, c_out: int, dtype: str, size: int, capability: tuple[int, int]) -> str:
    """The table's key: operation, channels, type, bits of the size, compute capability."""
    return f"{operation} {c_in}x{c_out} {dtype} 2^{size} sm_{capability[0]}{capability[1]}"


@functools.cache
def _table() -> dict[str, list[int]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


@functools.cache
def _look_up(operation: str, c_in: int, c_out: int, dtype: str, size: int, capability: tuple[int, int]):
    tuned = _table().get(name(operation, c_in, c_out, dtype, size, capability))
    if tuned:
        return Configuration(*tuned)
    wide = 64 if dtype == "float32" else 128
    fit = [min(max(triton.next_power_of_2(c), 16), wide) for c in (c_in, c_out)]
    depth = min(max(c_in & -c_in, 16), 32 if dtype == "float32" else 64)  # where it can, a divisor: no masked loads
    if operation == "convolve":
        return Configuration(0, fit[1], depth, 1, 8 if fit[1] > 64 and size > 12 else 4, 3)
    splits = 1 << min(max(size - 8, 0), 5)  # some 256 pairs a program at least, and at most 32 partial sums
    return Configuration(
        fit[0], fit[1], 32 if dtype == "float32" else 64, splits, 8 if min(fit) > 64 else 4 if min(fit) > 16 else 2, 3
    )
