"""How close does the engine come to dense matrix products on a CPU?

    python -m benchmarks.engine_cpu --scans PATH/bench_scans.npz [--threads 1] [--repeats 3]

Trains Res16UNet34C for one step (forward and backward, kernel maps included) on one scan and on two, and compares with
two times of the same run: dense products of as many multiplications, and the same network on a plain
gather-multiply-scatter left to autograd. Prints a table and writes a JSON row under benchmarks/results/.
"""

import argparse
import datetime
import json
import platform
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from data.disk import InputError, atomic_write
from slidr.minkunet import MinkUNet
from triton_kernels import SparseConv3d, SparseConvTranspose3d, SparseTensor, backend, modules

DENSE = 1024  # edge of the square matrices that stand for dense products: large enough for the full rate


def gather_multiply_scatter(x, weight, kernel_map, transposed=False):
    """What one writes first: one gather, product and scatter per kernel offset, gradients by autograd."""
    m = kernel_map
    rows_in, rows_out, n_out = (m.coarse, m.fine, m.n_fine) if transposed else (m.fine, m.coarse, m.n_coarse)
    out = x.new_zeros(n_out, weight.shape[2])
    for k, (i, o) in enumerate(zip(rows_in.split(m.counts), rows_out.split(m.counts), strict=True)):
        out = out.index_add(0, o, x[i] @ weight[k])
    return out


def multiplications(network: MinkUNet, features: torch.Tensor, coordinates: torch.Tensor) -> int:
    """Floating-point operations of one step's products: forward, input gradient (not of the stem), weight gradient."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        fine, coarse = (output, inputs[0]) if isinstance(layer, SparseConvTranspose3d) else (inputs[0], output)
        if layer.kernel_size == (1, 1, 1):
            pairs = len(fine.features)
        else:
            pairs = len(
                fine.cache.kernel_map(
                    fine.stride, coarse.stride, layer.kernel_size, layer.dilation, features.dtype
                ).fine
            )
        total += 2 * pairs * layer.weight[0].numel() * (2 if layer is network.conv0p1s1 else 3)

    kinds = (SparseConv3d, SparseConvTranspose3d)
    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        network(SparseTensor(features, coordinates))
    for hook in hooks:
        hook.remove()
    return total


def seconds(f) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(network: MinkUNet, features: torch.Tensor, coordinates: torch.Tensor, repeats: int) -> dict:
    """Best of `repeats`, the three kinds taking turns so that a busy machine slows them alike."""
    operations = multiplications(network, features, coordinates)
    a, b = torch.randn(DENSE, DENSE), torch.randn(DENSE, DENSE)

    def step():
        network.zero_grad()
        network(SparseTensor(features, coordinates)).features.sum().backward()

    def plain():
        with mock.patch.object(modules, "convolve", gather_multiply_scatter):
            step()

    def dense():
        for _ in range(round(operations / (2 * DENSE**3))):
            a @ b

    kinds = {"dense": dense, "engine": step, "plain": plain}
    times = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, f in kinds.items():
            times[name].append(seconds(f))
    best = {name: min(values) for name, values in times.items()}
    return {
        "voxels": len(coordinates),
        "gflop": round(operations / 1e9, 1),
        "dense_gflop_per_s": round(operations / best["dense"] / 1e9, 1),
        **{f"{name}_s": round(value, 3) for name, value in best.items()},
        "engine_to_dense": round(best["engine"] / best["dense"], 2),
        "plain_to_engine": round(best["plain"] / best["engine"], 2),
    }


def load(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(features `[V, 1]`, coordinates `[V, 4]` int32) of all scans; InputError if the file cannot be used."""
    try:
        with np.load(path) as file:
            return torch.from_numpy(file["feats"]).float(), torch.from_numpy(file["coords"].astype(np.int32))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"cannot read scans from {path} ({error}); name a file with `coords` and `feats`.") from error


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="npz of coords [V, 4] and feats [V, 1]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    try:
        features, coordinates = load(arguments.scans)
    except InputError as error:
        sys.exit(f"engine_cpu.py: {error}")
    network = MinkUNet(64, normalize=True)
    now = datetime.datetime.now(datetime.UTC)
    row = {
        "benchmark": "engine_cpu",
        "date": now.isoformat(timespec="seconds"),
        "device": _processor(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scans": {},
    }
    print(f"Res16UNet34C, forward + backward, {arguments.threads} thread(s) of {row['device']}")
    print(f"{backend.describe(torch.device('cpu'))}, torch {torch.__version__}\n")
    print("scans   voxels    GFLOP   dense s  engine s   plain s   engine/dense   plain/engine")
    for scans in (1, 2):
        mine = coordinates[:, 0] < scans
        r = row["scans"][scans] = measure(network, features[mine], coordinates[mine], arguments.repeats)
        seconds_each = "".join(f"{r[f'{name}_s']:10.2f}" for name in ("dense", "engine", "plain"))
        print(
            f"{scans:5} {r['voxels']:8,} {r['gflop']:8.1f}{seconds_each} "
            f"{r['engine_to_dense']:14.2f} {r['plain_to_engine']:14.2f}"
        )
    path = Path("benchmarks/results/engine_cpu.json")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(row, indent=1) + "\n")
    print(f"\nwritten: {path}")


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
