"""How fast is the engine on a GPU, layer by layer, against the hardware's ceilings and against other engines?

    python -m benchmarks.engine_gpu --scans PATH/bench_scans.npz [--batches 1 4 16] [--no-tune] [--no-tests]

One call, under ten minutes on an H100: (a) the engine's tests on the device; (b) ceilings of memory bandwidth and of
matrix products; (c) the table of block shapes, tuned for this device, written to triton_kernels/configurations.json;
(d) forward, input gradient and weight gradient of each layer of Res16UNet34C, and the whole training step, from points
to gradients, with kernel maps; (e) the same step on every peer that is installed, after checking that it gives the
same. Writes JSON and Markdown under benchmarks/results/. `--smoke` runs the same code on a tiny cloud in Triton's
interpreter: it shows that the script works, and its times mean nothing.
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import triton

from benchmarks import peers
from benchmarks.engine_cpu import load
from data.files import atomic_write
from slidr.networks.minkunet import STRIDES, MinkUNet
from triton_kernels import (
    CartesianGrid,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseTensor,
    backend,
    configurations,
    convolution,
    voxelize,
)
from triton_kernels.configurations import Configuration
from triton_kernels.kernel_map import Tiles
from triton_kernels.kernels import convolution as convolution_kernels
from triton_kernels.kernels import kernel_map as map_kernels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
RESULTS = Path("benchmarks/results")


def seconds(f: Callable[[], object], device: torch.device, repeats: int = 10, ahead: bool = False) -> float:
    """Median time of one call, on the device's own clock; two calls before warm up.

    With `ahead` the device is kept busy while the host launches all that is timed: else a single product, which takes
    less time than its launch, would show the time of that.
    """
    times = []
    for i in range(repeats + 2):
        if device.type == "cuda":
            if ahead:
                torch.cuda._sleep(500_000)  # clock cycles: a quarter of a millisecond
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            f()
            end.record()
            end.synchronize()
            took = begin.elapsed_time(end) / 1000
        else:
            start = time.perf_counter()
            f()
            took = time.perf_counter() - start
        if i >= 2 or repeats == 1:
            times.append(took)
    return statistics.median(times)


def host_seconds(f: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median time until the host has launched one call: where it is that of the call, the device waits for the host."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ceilings(device: torch.device, size: int) -> dict[str, float]:
    """GB/s of a copy (read and write) and TFLOP/s of a square matrix product, by type."""
    a = torch.empty(size * size * 4, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    found = {"copy_gb_s": 2 * len(a) / seconds(lambda: b.copy_(a), device) / 1e9}
    for name, dtype in DTYPES.items():
        x, y = torch.randn(2, size, size, device=device).to(dtype)
        found[f"matmul_{name}_tflop_s"] = 2 * size**3 / seconds(lambda x=x, y=y: x @ y, device) / 1e12
    return found


class Workload:
    """Scans as points whose voxels are the scans' voxels, and a training step on them."""

    def __init__(self, features, coordinates, network: MinkUNet, dtype: torch.dtype, device: torch.device):
        self.features, self.network, self.dtype, self.device = features.to(device), network, dtype, device
        self.coordinates = coordinates.to(device)
        self.points = self.coordinates[:, 1:].float() + 0.5
        self.batch = self.coordinates[:, 0].long()
        self.parameters = peers.leaves(network)

    def voxels(self) -> SparseTensor:
        """The batch at every stride: the step's one wait for the device."""
        v = voxelize(self.points, self.batch, CartesianGrid(1.0), STRIDES)
        return SparseTensor(self.features[v.first], v)

    def maps(self, x: SparseTensor) -> None:
        """All nine kernel maps."""
        for fine, coarse in zip(STRIDES, STRIDES[1:], strict=False):
            x.cache.kernel_map((fine,) * 3, (coarse,) * 3, (2,) * 3, (1,) * 3, self.dtype)
        for stride in STRIDES:
            x.cache.kernel_map((stride,) * 3, (stride,) * 3, (3,) * 3, (1,) * 3, self.dtype)

    def forward(self, x: SparseTensor) -> torch.Tensor:
        """The network's output on voxels."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(x).features

    def step(self) -> None:
        """From points to gradients."""
        peers.forget_gradients(self.parameters)
        self.forward(self.voxels()).float().square().mean().backward()

    def peer_step(self, peer: peers.Step, parameters: list[torch.nn.Parameter]) -> None:
        """The same with a peer and its `leaves`; its voxels are given, its maps are its own."""
        peers.forget_gradients(parameters)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = peer(self.features, self.coordinates)
        out.float().square().mean().backward()

    def calls(self) -> list[tuple[str, torch.nn.Module, torch.Tensor, object]]:
        """(name, layer, input features, map) of every layer that is no plain product, from one forward pass."""
        found = []
        names = {module: name for name, module in self.network.named_modules()}

        def note(layer, inputs, output):
            if len(layer.weight) == 1:
                return
            (x,), transposed = inputs, isinstance(layer, SparseConvTranspose3d)
            fine, coarse = (output, x) if transposed else (x, output)
            where = (fine.stride, coarse.stride, layer.kernel_size, layer.dilation, self.dtype)
            found.append((names[layer], layer, x.features.detach().to(self.dtype), x.cache.kernel_map(*where)))

        kinds = SparseConv3d | SparseConvTranspose3d
        hooks = [m.register_forward_hook(note) for m in self.network.modules() if isinstance(m, kinds)]
        with torch.no_grad():
            self.forward(self.voxels())
        for hook in hooks:
            hook.remove()
        return found


def operations(layer: torch.nn.Module, x: torch.Tensor, m: Tiles) -> dict[str, Callable[[], torch.Tensor]]:
    """The three products of a layer, by the name of their configuration's use."""
    transposed, weight = isinstance(layer, SparseConvTranspose3d), layer.weight.detach().to(x.dtype)
    grad = torch.randn(m.n_fine if transposed else m.n_coarse, weight.shape[2], device=x.device).to(x.dtype)
    rows = (m.pairs_coarse, m.pairs_fine) if transposed else (m.pairs_fine, m.pairs_coarse)
    return {
        "forward": lambda: convolution._tiles(x, weight, m, to_fine=transposed),
        "input gradient": lambda: convolution._tiles(grad, weight, m, to_fine=not transposed, transpose=True),
        "weight gradient": lambda: convolution._weight_gradient_tiles(x, grad, *rows, m.start),
    }


def layers(work: Workload, repeats: int) -> list[dict]:
    """Time, useful TFLOP/s and compulsory GB/s of each layer's three products."""
    rows = []
    for name, layer, x, m in work.calls():
        c_in, c_out = layer.weight.shape[1:]
        pairs = int(m.start[-1])
        size = x.element_size()
        traffic = (m.n_fine * (c_out if isinstance(layer, SparseConvTranspose3d) else c_in)
                   + m.n_coarse * (c_in if isinstance(layer, SparseConvTranspose3d) else c_out)
                   + layer.weight.numel()) * size  # fmt: skip
        for operation, f in operations(layer, x, m).items():
            took = seconds(f, work.device, repeats, ahead=True)
            rows.append({
                "layer": name, "operation": operation, "rows": len(x), "channels": [c_in, c_out], "pairs": pairs,
                "us": took * 1e6, "tflop_s": 2 * pairs * c_in * c_out / took / 1e12, "gb_s": traffic / took / 1e9,
            })  # fmt: skip
    return rows


def candidates(operation: str, c_in: int, c_out: int, dtype: torch.dtype, rows: int) -> list[Configuration]:
    """Block shapes worth a try."""
    fit_in, fit_out = (max(triton.next_power_of_2(c), 16) for c in (c_in, c_out))
    halves = dtype != torch.float32
    block_ns = [n for n in ((32, 64, 128, 256) if halves else (32, 64)) if n <= fit_out and n * 4 >= fit_out]
    block_ks = [k for k in ((32, 64) if halves else (16, 32)) if k <= max(fit_in, 16)] or [16]
    found = []
    if operation == "convolve":
        splits = (1, 2, 4) if rows < 16384 else (1,)
        for n, k, s, warps, stages in itertools.product(block_ns or [fit_out], block_ks, splits, (4, 8), (3, 4)):
            if s == 1 or stages == 3:
                found.append(Configuration(0, n, k, s, warps, stages))
        return found
    block_ms = [m for m in (32, 64, 128) if m <= fit_in and m * 4 >= fit_in] or [fit_in]
    for m, n, k, s in itertools.product(block_ms, block_ns or [fit_out], (32, 64), (1, 2, 4, 8, 16, 32)):
        n = min(n, 128)
        programs = 27 * backend.cdiv(c_in, m) * backend.cdiv(c_out, n) * s
        if 64 <= programs <= 4096:  # neither an idle GPU nor vast partial sums
            found.append(Configuration(m, n, k, s, 8 if m * n >= 8192 else 4, 3))
    return list(dict.fromkeys(found))


def _use(operation: str, layer: torch.nn.Module) -> tuple[str, int, int]:
    """(configuration's operation, channels in, channels out) of one of a layer's products."""
    c_in, c_out = layer.weight.shape[1:]
    if operation == "weight gradient":
        return "weight_gradient", c_in, c_out
    return ("convolve", c_out, c_in) if operation == "input gradient" else ("convolve", c_in, c_out)


def _precompile(job: tuple) -> int:
    """Run a product in each configuration on a tiny cloud, in a process of a pool: Triton keeps the kernels on disk.

    Returns how many fit the device.
    """
    kind, channels, size, operation, height, dtype, found, device = job
    points = torch.cartesian_prod(*[torch.arange(4.0)] * 3).to(device)
    v = voxelize(points, torch.zeros(len(points), device=device), CartesianGrid(1.0), (1, 2))
    cache, coarse = SparseTensor(v.coordinates.float(), v).cache, (1 if size == 3 else 2,) * 3
    with backend.forced("triton"), mock.patch.object(map_kernels, "tile_height", lambda n: height):
        m = cache.kernel_map((1,) * 3, coarse, (size,) * 3, (1,) * 3, dtype)
        rows = m.n_coarse if kind is SparseConvTranspose3d else m.n_fine
        layer = kind(*channels, size, coarse).to(device)
        f = operations(layer, torch.randn(rows, channels[0], device=device).to(dtype), m)[operation]
        return sum(_fits(f, c) for c in found)


def _fits(f: Callable[[], torch.Tensor], c: Configuration) -> bool:
    with mock.patch.object(convolution_kernels, "configuration", lambda *_: c):
        try:
            f()
        except triton.runtime.errors.OutOfResources:  # more shared memory than this device has
            return False
    return True


def tune(works: list[Workload], repeats: int) -> dict[str, dict[str, list[int]]]:
    """The fastest configuration of every product of every layer, by key and bits of the size of the shipped table."""
    device, jobs, places = works[0].device, [], {}
    for work in works:
        for _, layer, x, m in work.calls():
            for operation, f in operations(layer, x, m).items():
                use = _use(operation, layer)
                n = len(m.pairs_fine) // len(layer.weight) if use[0] == "weight_gradient" else len(f())
                key = configurations.name(*use, work.dtype.itemsize, device), str(n.bit_length())
                found = candidates(*use, work.dtype, n)
                channels, size = layer.weight.shape[1:], layer.kernel_size[0]
                jobs.append(
                    (type(layer), channels, size, operation, map_kernels.tile_height(n), work.dtype, found, device)
                )
                places.setdefault(key, (f, found))
    if device.type == "cuda":
        jobs = list({str(job): job for job in jobs}.values())
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_precompile, jobs))
    table = {}
    for (key, bits), (f, found) in places.items():
        times = {}
        for c in found:
            if _fits(f, c):
                with mock.patch.object(convolution_kernels, "configuration", lambda *_, c=c: c):
                    times[c] = seconds(f, device, repeats, ahead=True)
        if times:
            table.setdefault(key, {})[bits] = list(min(times, key=times.get))
    return table


def test_on_device() -> str:
    """The last line of the engine's test suite, run on this device."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/triton_kernels",
        "-k",
        "not compile",
        "-p",
        "no:cacheprovider",
    ]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "8"]  # each process compiles
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        print("\n".join(lines[-60:]))
    return lines[-1] if lines else "no output"


def bench(work: Workload, repeats: int) -> dict:
    """The whole step: time, the host's share, its parts, peak memory, and every peer."""
    device = work.device
    work.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row = {"step_ms": 1e3 * seconds(work.step, device, repeats)}
    row["host_ms"] = 1e3 * host_seconds(work.step, device, repeats)
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    row["voxelize_ms"] = 1e3 * seconds(work.voxels, device, repeats)
    row["maps_ms"] = 1e3 * seconds(lambda: work.maps(work.voxels()), device, repeats) - row["voxelize_ms"]
    row["peers"] = {}
    for name, build in peers.available(device).items():
        try:
            peer = build(work.network)
            difference = peers.check(work.network, peer, work.features, work.coordinates)
            step = partial(work.peer_step, peer, peers.leaves(work.network, peer))
            row["peers"][name] = {"difference": difference, "ms": 1e3 * seconds(step, device, repeats)}
        except Exception as error:  # a peer that fails here is a finding, not an end
            row["peers"][name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return row


def kernel_times(work: Workload) -> dict[str, float]:
    """Milliseconds on the device by kernel, in one step, and of all: what the step would take if nothing waited."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work.step()
        torch.cuda.synchronize()
    times = {e.key[:60]: e.self_device_time_total / 1e3 for e in profile.key_averages() if e.self_device_time_total}
    times["all"] = sum(times.values())
    return dict(sorted(times.items(), key=lambda item: -item[1])[:25])


def markdown(record: dict) -> str:
    """The record as tables."""
    versions = f"{record['date']}, torch {record['torch']}, Triton {record['triton']}"
    lines = [
        f"# Engine on {record['device']}\n",
        f"{versions}. Tests on the device: {record['tests']}.\n",
        "Ceilings: " + ", ".join(f"{k} {v:.0f}" for k, v in record["ceilings"].items()) + ".\n",
        _row("scans", "type", "step ms", "host ms", "voxelize ms", "maps ms", "share of maps", "peak GiB", "peers ms"),
        "|---" * 9 + "|",
    ]
    for r in record["steps"]:
        others = ", ".join(f"{n} {p['ms']:.1f}" if "ms" in p else f"{n} failed" for n, p in r["peers"].items()) or "–"
        times = (f"{r[k]:.2f}" for k in ("step_ms", "host_ms", "voxelize_ms", "maps_ms"))
        share = f"{r['maps_ms'] / r['step_ms']:.0%}"
        lines.append(_row(r["scans"], r["type"], *times, share, f"{r.get('peak_gib', 0):.2f}", others))
    for title, rows in record["layers"].items():
        head = _row("layer", "operation", "rows", "channels", "µs", "TFLOP/s", "GB/s")
        lines += [f"\n## {title}\n", head, "|---" * 7 + "|"]
        for r in rows:
            channels = "{} → {}".format(*r["channels"])
            rates = (f"{r['us']:.0f}", f"{r['tflop_s']:.1f}", f"{r['gb_s']:.0f}")
            lines.append(_row(r["layer"], r["operation"], f"{r['rows']:,}", channels, *rates))
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Test, measure, tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="npz of coords [V, 4] and feats [V, 1]")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--types", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--no-tune", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="tiny, in Triton's interpreter (set TRITON_INTERPRET=1)")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        sys.exit("engine_gpu.py: there is no GPU here; --smoke shows that the script works.")
    device = torch.device("cpu" if options.smoke else "cuda")
    torch.manual_seed(0)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {text}", flush=True)

    features, coordinates = load(options.scans)
    if options.smoke:
        features, coordinates = features[:120], coordinates[:120]
        network, repeats, size = MinkUNet(8, "res16unet14c", width=0.25, normalize=True), 1, 64
    else:
        network, repeats, size = MinkUNet(64, normalize=True).to(device), 10, 8192
    tests = "not run" if options.no_tests else test_on_device()
    say(f"tests: {tests}")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, interpreted"
    record = {
        "benchmark": "engine_gpu",
        "date": datetime.date.today().isoformat(),
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "tests": tests,
        "ceilings": ceilings(device, size),
        "steps": [],
        "layers": {},
    }
    say(f"ceilings: {record['ceilings']}")

    def workload(scans: int, kind: str) -> Workload:
        mine = coordinates[:, 0] < scans
        return Workload(features[mine], coordinates[mine], network, DTYPES[kind], device)

    extremes = dict.fromkeys((options.batches[0], options.batches[-1]))  # once, if they are the same
    with backend.forced("triton"):
        if not options.no_tune:
            table = tune([workload(scans, "bf16") for scans in extremes], repeats)
            say(f"tuned {len(table)} products")
            if not options.smoke:
                kept = json.loads(configurations.TABLE.read_text()) if configurations.TABLE.exists() else {}
                kept |= {key: kept.get(key, {}) | sizes for key, sizes in table.items()}
                with atomic_write(configurations.TABLE) as temporary:
                    temporary.write_text(json.dumps(kept, indent=0, sort_keys=True) + "\n")
                configurations._table.cache_clear(), configurations._look_up.cache_clear()
        for scans, kind in itertools.product(options.batches, options.types):
            work = workload(scans, kind)
            row = {"scans": scans, "type": kind, "voxels": len(work.points), **bench(work, repeats)}
            record["steps"].append(row)
            say(f"{scans} scans, {kind}: {row}")
        for scans in extremes:
            work = workload(scans, "bf16")
            record["layers"][f"{scans} scans, bf16"] = layers(work, repeats)
            if device.type == "cuda":
                record[f"kernels, {scans} scans"] = kernel_times(work)
                say(f"kernels, {scans} scans: {json.dumps(record[f'kernels, {scans} scans'], indent=1)}")
    slug = "smoke" if options.smoke else "".join(c if c.isalnum() else "_" for c in name.lower())
    for suffix, text in ((".json", json.dumps(record, indent=1) + "\n"), (".md", markdown(record))):
        with atomic_write(RESULTS / f"engine_gpu_{slug}{suffix}") as temporary:
            temporary.write_text(text)
    say(f"written: {RESULTS}/engine_gpu_{slug}.json and .md")


if __name__ == "__main__":
    main()
