"""Block shapes of the convolution kernels: a plain table, tuned before training by benchmarks/engine_gpu.py.

Not Triton's autotuner: it adds 25 us to each launch, stalls training for minutes, and mistimes kernels that accumulate.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch

from triton_kernels.backend import cdiv

TABLE = Path(__file__).with_name("configurations.json")


class Configuration(NamedTuple):
    """A program computes `block_m` x `block_n` of the output, adding `block_k` terms a step; `splits` share a sum."""

    block_m: int  # of the weight gradient only: a convolution takes the tile height of its plan
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int


@functools.cache
def _table() -> dict[str, dict[str, list[int]]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def configuration(
    operation: str, c_in: int, c_out: int, dtype: torch.dtype, rows: int, device: torch.device
) -> Configuration:
    """The configuration tuned for the nearest size, or a default that fits the channels.

    Args:
        operation: convolve or weight_gradient.
        c_in, c_out: channels.
        dtype: of the features; bfloat16 and float16 share an entry.
        rows: output rows of a convolution, average pairs per offset of a weight gradient; rounded to powers of two.
        device: where it runs; entries are kept per compute capability.
    """
    return _look_up(operation, c_in, c_out, dtype.itemsize, max(rows, 1).bit_length(), device)


def name(operation: str, c_in: int, c_out: int, bytes_each: int, device: torch.device) -> str:
    """The table's key: operation, channels, bits of a feature, compute capability. Its entries are keyed by size."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return f"{operation} {c_in}x{c_out} {8 * bytes_each} bits sm_{capability[0]}{capability[1]}"


@functools.cache
def _look_up(operation: str, c_in: int, c_out: int, bytes_each: int, size: int, device: torch.device):
    tuned = _table().get(name(operation, c_in, c_out, bytes_each, device))
    if tuned:
        return Configuration(*tuned[min(tuned, key=lambda bits: abs(int(bits) - size))])
    single = bytes_each > 2
    block_m, block_n = (min(max(1 << (c - 1).bit_length(), 16), 64 if single else 128) for c in (c_in, c_out))
    if operation == "convolve":
        block_k = min(max(c_in & -c_in, 16), 32 if single else 64)  # divides c_in where possible: no masked loads
        return Configuration(0, block_n, block_k, 1, 8 if block_n > 64 and size > 12 else 4, 3)
    # enough programs to keep a GPU busy with 27 offsets, but about 256 pairs each: every program writes a partial sum
    programs = 27 * cdiv(c_in, block_m) * cdiv(c_out, block_n)
    splits = 1 << max(min((512 // programs).bit_length() - 1, size - 8), 0)
    narrow, block_k = min(block_m, block_n), 32 if single else 64
    return Configuration(block_m, block_n, block_k, splits, 8 if narrow > 64 else 4 if narrow > 16 else 2, 3)
