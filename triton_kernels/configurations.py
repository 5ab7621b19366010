"""Block shapes of the convolution kernels: a plain table, tuned before training by benchmarks/engine_gpu.py.

No autotuner: it costs 25 us a launch, stops a training step for minutes, and times kernels that accumulate wrongly.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from triton_kernels.backend import cdiv

TABLE = Path(__file__).with_name("configurations.json")


class Configuration(NamedTuple):
    """`rows` x `columns` of the output a program, `depth` of the sum a step, `splits` programs that share one sum."""

    rows: int  # of the weight's gradient; a convolution's are its plan's tile height
    columns: int
    depth: int
    splits: int
    warps: int
    stages: int


@functools.cache
def _table() -> dict[str, dict[str, list[int]]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def configuration(
    operation: str, c_in: int, c_out: int, dtype: torch.dtype, rows: int, device: torch.device
) -> Configuration:
    """The tuned configuration of an operation at the nearest size, or a default that fits its channels.

    Args:
        operation: convolve or weight_gradient.
        c_in, c_out: channels.
        dtype: of the features; both halves count as one.
        rows: output rows (gradient: pairs an offset, about); sizes count in powers of two.
        device: where it runs; its compute capability counts.
    """
    return _look_up(operation, c_in, c_out, dtype.itemsize, max(rows, 1).bit_length(), device)


def name(operation: str, c_in: int, c_out: int, bytes_each: int, device: torch.device) -> str:
    """The table's key: operation, channels, bytes of a feature, compute capability. Below it stand bits of the size."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return f"{operation} {c_in}x{c_out} {8 * bytes_each} bits sm_{capability[0]}{capability[1]}"


@functools.cache
def _look_up(operation: str, c_in: int, c_out: int, bytes_each: int, size: int, device: torch.device):
    tuned = _table().get(name(operation, c_in, c_out, bytes_each, device))
    if tuned:
        return Configuration(*tuned[min(tuned, key=lambda bits: abs(int(bits) - size))])
    single = bytes_each > 2
    wide = 64 if single else 128
    fit = [min(max(triton.next_power_of_2(c), 16), wide) for c in (c_in, c_out)]
    depth = min(max(c_in & -c_in, 16), 32 if single else 64)  # where it can, a divisor: no masked loads
    if operation == "convolve":
        return Configuration(0, fit[1], depth, 1, 8 if fit[1] > 64 and size > 12 else 4, 3)
    # as many programs as keep a GPU busy with 27 offsets, some 256 pairs each at least: each writes a partial sum
    programs = 27 * cdiv(c_in, fit[0]) * cdiv(c_out, fit[1])
    splits = 1 << max(min((512 // programs).bit_length() - 1, size - 8), 0)
    warps = 8 if min(fit) > 64 else 4 if min(fit) > 16 else 2
    return Configuration(*fit, 32 if single else 64, splits, warps, 3)
