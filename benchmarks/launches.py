"""How many kernels does a training step launch on a GPU, and how long is the host busy with them? No GPU is needed.

    python -m benchmarks.launches --scans PATH/bench_scans.npz

With few scans a GPU waits for its host: each launch costs some microseconds of Python. Runs one training step of
Res16UNet34C, from points to gradients, twice: in Triton's interpreter, counting what torch and Triton would launch;
and compiled for an H100, on a driver that launches nothing, to time the host. Both on a tiny cloud and an eighth of
the channels. Larger ones make one launch more in each layer whose weight gradient is split among programs, which adds
up the parts: at most 55. Torch's own small operations run on the CPU here, which takes about as long as launching
them; Triton's own launcher and the driver, some microseconds a launch, are not in the times. Prints a table and writes
a JSON row under benchmarks/results/.
"""

import argparse
import collections
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.backends.compiler import GPUTarget
from triton.runtime import interpreter

from benchmarks import record
from benchmarks.engine_cpu import load
from benchmarks.engine_gpu import Workload
from data.files import InputError
from slidr.networks.minkunet import STRIDES, MinkUNet
from triton_kernels import CartesianGrid, SparseTensor, backend, voxelize
from triton_kernels.kernels import INTERPRETED

PARTS = ("voxelize", "maps", "forward", "backward")
# what reaches torch's dispatcher but no device: views, allocations, transfers to the host
NO_LAUNCH = """view _unsafe_view reshape slice select unsqueeze squeeze expand t transpose permute as_strided unbind
split split_with_sizes detach alias empty empty_like empty_strided new_empty new_empty_strided lift_fresh resize_
_local_scalar_dense promote_types""".split()


class Operations(TorchDispatchMode):
    """Calls `note` for each of torch's operations."""

    def note(self, name: str, operator, arguments: tuple) -> None:
        raise NotImplementedError

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.note(operator.name().split("::")[1].split(".")[0], operator, args)
        return operator(*args, **(kwargs or {}))


class _Count(Operations):
    def __init__(self, counts: collections.Counter):
        super().__init__()
        self.counts = counts

    def note(self, name, operator, arguments):
        if name not in NO_LAUNCH:
            self.counts[name] += 1


@contextlib.contextmanager
def counted() -> Iterator[collections.Counter[str]]:
    """Within it, what torch and Triton launch by name; Triton's only in its interpreter."""
    counts, run = collections.Counter(), interpreter.GridExecutor.__call__

    def call(executor, *args, **kwargs):
        counts[executor.fn.__name__] += 1
        with _disable_current_modes():  # the interpreter's own operations are no launches
            return run(executor, *args, **kwargs)

    with mock.patch.object(interpreter.GridExecutor, "__call__", call), _Count(counts):
        yield counts


class NoDevice:
    """A driver that compiles for an H100 and launches nothing."""

    class utils:
        @staticmethod
        def load_binary(name, kernel, shared, device):
            return 0, 0, 0, 0, 1024  # module, function, registers, spills, threads at most

        @staticmethod
        def get_device_properties(device):
            return {"max_shared_mem": 227 * 1024}

    @staticmethod
    def launcher_cls(source, metadata):
        return lambda *arguments: None

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def workload(path: Path) -> Workload:
    """A tiny part of a scan and a narrow Res16UNet34C."""
    features, coordinates = load(path)
    network = MinkUNet(8, width=0.125, normalize=True)
    return Workload(features[:80], coordinates[:80], network, torch.bfloat16, torch.device("cpu"))


def count(work: Workload) -> dict[str, dict[str, int]]:
    """Launches of each part of a step, by name."""
    found = {}
    with backend.forced("triton"):
        with counted() as found["voxelize"]:
            x = work.voxels()
        with counted() as found["maps"]:
            work.maps(x)
        with counted() as found["forward"]:
            loss = work.forward(x).float().square().mean()
        with counted() as found["backward"]:
            loss.backward()
    return found


def host_milliseconds(work: Workload, repeats: int) -> dict[str, float]:
    """Median time of each part but `voxelize`, which needs what the kernels compute."""
    triton.runtime.driver.set_active(NoDevice())
    voxels = voxelize(work.points, work.batch, CartesianGrid(1.0), STRIDES)
    times = {part: [] for part in PARTS[1:]}
    with backend.forced("triton"):
        for _ in range(repeats + 1):  # the first compiles
            x = SparseTensor(work.features[voxels.first], voxels)
            moments = [time.perf_counter()]
            work.maps(x)
            moments.append(time.perf_counter())
            loss = work.forward(x).float().square().mean()
            moments.append(time.perf_counter())
            loss.backward()
            moments.append(time.perf_counter())
            work.network.zero_grad()
            for part, begin, end in zip(times, moments, moments[1:], strict=False):
                times[part].append(end - begin)
    return {part: round(1e3 * statistics.median(values[1:]), 2) for part, values in times.items()}


def main() -> None:
    """Count, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="npz of coords [V, 4] and feats [V, 1]")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--count", action="store_true", help="only count, and print JSON (set TRITON_INTERPRET=1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        work = workload(options.scans)
    except InputError as error:
        sys.exit(f"launches.py: {error}")
    if options.count:
        print(json.dumps(count(work)))
        return
    if INTERPRETED:
        sys.exit("launches.py: times need compiled kernels; unset TRITON_INTERPRET.")
    command = [sys.executable, "-m", "benchmarks.launches", "--scans", str(options.scans), "--count"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    counts = json.loads(done.stdout.splitlines()[-1])
    times = host_milliseconds(work, options.repeats)
    print(f"one training step of Res16UNet34C on a GPU; host: one thread of {record.processor()}\n")
    print("| part | launches | of these Triton's | host ms |\n|---|---|---|---|")
    for part, found in counts.items():
        ours = sum(n for name, n in found.items() if name.startswith("_") and name != "_to_copy")
        print(f"| {part} | {sum(found.values())} | {ours} | {times.get(part, '–')} |")
    print(f"| step | {sum(sum(found.values()) for found in counts.values())} | | {sum(times.values()):.1f} |")
    record.write("launches", {"launches": counts, "host_ms": times})


if __name__ == "__main__":
    main()
