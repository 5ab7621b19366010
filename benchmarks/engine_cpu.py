"""How close does the engine come to dense matrix products on a CPU, and to other engines?

    python -m benchmarks.engine_cpu --scans PATH/bench_scans.npz [--threads 1] [--repeats 3] [--precision bf16]

Trains Res16UNet34C for one step (forward and backward, kernel maps included) on one scan and on two, and compares, in
the same run, with dense products of as many multiplications, with the same network on a plain gather-multiply-scatter
left to autograd, and with every peer that is installed. Peak memory of a step is measured in a process of its own.
Prints a table and writes a JSON row under benchmarks/results/.
"""

import argparse
import gc
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import peers, record
from data.files import InputError
from slidr.networks.minkunet import MinkUNet
from triton_kernels import SparseConv3d, SparseConvTranspose3d, SparseTensor, backend

DENSE = 1024  # edge of the square matrices that stand for dense products: large enough for the full rate


def multiplications(network: MinkUNet, features: torch.Tensor, coordinates: torch.Tensor) -> int:
    """Floating-point operations of one step's products: forward, input gradient (not of the stem), weight gradient."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        fine, coarse = (output, inputs[0]) if isinstance(layer, SparseConvTranspose3d) else (inputs[0], output)
        where = (fine.stride, coarse.stride, layer.kernel_size, layer.dilation, features.dtype)
        # 1x1x1 layers have no map
        pairs = len(fine.features if len(layer.weight) == 1 else peers.listed(fine.cache.kernel_map(*where)))
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


def engine(network: MinkUNet) -> peers.Step:
    """Ours."""
    return lambda features, coordinates: network(SparseTensor(features, coordinates)).features


def steps(network: MinkUNet) -> dict[str, peers.Step]:
    """Ways to compute the network, by name."""
    others = {name: build(network) for name, build in peers.available(torch.device("cpu")).items()}
    return {"engine": engine(network), "plain": peers.plain(network), **others}


def train(way: peers.Step, precision: str, features: torch.Tensor, coordinates: torch.Tensor) -> None:
    """One step: forward and backward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        way(features, coordinates).sum().backward()


def measure(network, features, coordinates, repeats: int, precision: str) -> dict:
    """Best of `repeats`, the ways taking turns so that a busy machine slows them alike."""
    operations = multiplications(network, features, coordinates)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, DENSE, DENSE).to(dtype)

    def dense():
        for _ in range(round(operations / (2 * DENSE**3))):
            a @ b

    ways = steps(network)
    times = {name: [] for name in ("dense", *ways)}
    for _ in range(repeats):
        times["dense"].append(seconds(dense))
        for name, way in ways.items():
            peers.forget_gradients(peers.leaves(network, way))
            times[name].append(seconds(partial(train, way, precision, features, coordinates)))
    best = {name: min(values) for name, values in times.items()}
    return {
        "voxels": len(coordinates),
        "gflop": round(operations / 1e9, 1),
        "dense_gflop_per_s": round(operations / best["dense"] / 1e9, 1),
        "seconds": {name: round(value, 3) for name, value in best.items()},
        "to_dense": {name: round(value / best["dense"], 2) for name, value in best.items()},
    }


def resident(kind: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at the peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def peak_memory(name: str, scans: int, path: Path, precision: str) -> int:
    """Bytes that one step adds to the process at its peak: in a process of its own, run by `main`."""
    torch.set_num_threads(1)
    features, coordinates = load(path)
    mine = coordinates[:, 0] < scans
    network = MinkUNet(64, normalize=True)
    way = steps(network)[name]
    few = coordinates[:, 0] < 1
    train(way, precision, features[few][:500], coordinates[few][:500])  # libraries load, gradients exist
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    train(way, precision, features[mine], coordinates[mine])
    return resident("VmHWM") - before


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
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    try:
        features, coordinates = load(arguments.scans)
    except InputError as error:
        sys.exit(f"engine_cpu.py: {error}")
    network = MinkUNet(64, normalize=True)
    row = {"precision": arguments.precision, "repeats": arguments.repeats, "scans": {}}
    machine = f"{arguments.threads} thread(s) of {record.processor()}"
    print(f"Res16UNet34C, forward + backward, {machine}, {arguments.precision}")
    print(f"{backend.describe(torch.device('cpu'))}, torch {torch.__version__}\n")
    print("| scans | voxels | GFLOP | way | seconds | to dense | peak memory |\n|---|---|---|---|---|---|---|")
    for scans in (1, 2):
        mine = coordinates[:, 0] < scans
        r = measure(network, features[mine], coordinates[mine], arguments.repeats, arguments.precision)
        r["peak_bytes"] = {}
        for name, took in r["seconds"].items():
            memory = "–"
            if name != "dense":
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    peak = pool.apply(peak_memory, (name, scans, arguments.scans, arguments.precision))
                r["peak_bytes"][name] = peak
                memory = f"{peak / 2**30:.2f} GiB"
            cells = (scans, f"{r['voxels']:,}", r["gflop"], name, f"{took:.2f}", f"{r['to_dense'][name]:.2f}", memory)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        row["scans"][scans] = r
    record.write("engine_cpu" + "_bf16" * (arguments.precision == "bf16"), row)


if __name__ == "__main__":
    main()
