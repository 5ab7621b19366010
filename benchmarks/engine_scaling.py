"""How do the engine's time and memory grow with the number of voxels?

    python -m benchmarks.engine_scaling [--largest 4194304] [--threads 1] [--device cpu]

Batches of simulated scans from a thousand points to millions: time of voxelizing, of the kernel maps of a 3x3x3 layer
and a strided one, and of both layers with 32 channels forward and backward. Prints seconds, peak memory and the slope
of each in log-log: 1 is linear. Ends with one 128-beam scan of ten sweeps. Sizes beyond memory are left out, and named.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.engine_cpu import resident
from triton_kernels import CylindricalGrid, SparseConv3d, SparseTensor, voxelize

STAGES = ("voxelize", "maps", "forward", "backward")
BYTES_A_POINT = 3000  # measured: what one point costs at the peak of a step here, rounded up


def scan(beams: int, columns: int, sweeps: int = 1, seed: int = 0) -> torch.Tensor:
    """Points `[beams * columns * sweeps, 3]` in metres: walls at random distances around a sensor over a plane."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linspace(-math.pi, math.pi, columns + 1)[:-1]
    tilt = torch.linspace(math.radians(-25), math.radians(10), beams)
    wall = 5 + 60 * torch.rand(64, generator=g)
    points = []
    for sweep in range(sweeps):
        azimuth = turn[:, None].expand(columns, beams)
        reach = wall[((azimuth + math.pi) / (2 * math.pi) * 63.99).long()]
        ground = 1.8 / torch.clamp(-torch.tan(tilt), min=1e-3)
        rho = torch.minimum(reach, ground.expand_as(reach)) + 0.02 * torch.randn(columns, beams, generator=g)
        x, y, z = rho * torch.cos(azimuth), rho * torch.sin(azimuth), rho * torch.tan(tilt)
        points.append(torch.stack((x + 0.8 * sweep, y, z), -1).reshape(-1, 3))
    return torch.cat(points)


def batch_of(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(points `[N, 3]`, batch index `[N]`): as many 32-beam scans of 1024 columns as it takes, or a part of one."""
    scans = [scan(32, min(points // 32, 1024), seed=i) for i in range(max(points // 32768, 1))]
    return torch.cat(scans), torch.arange(len(scans)).repeat_interleave(len(scans[0]))


def measure(points: torch.Tensor, batch: torch.Tensor, device: torch.device) -> dict:
    """Seconds of each stage, voxels, and peak bytes beyond what the process held before."""
    layer = SparseConv3d(32, 32, 3).to(device)
    down = SparseConv3d(32, 32, 2, 2).to(device)
    points, batch = points.to(device), batch.to(device)
    seconds = {}

    def timed(name, f):
        _wait(device)
        start = time.perf_counter()
        result = f()
        _wait(device)
        seconds[name] = time.perf_counter() - start
        return result

    before = _forget_peak(device)
    v = timed("voxelize", lambda: voxelize(points, batch, CylindricalGrid(0.05, 0.25, 0.05), strides=(1, 2)))
    x = SparseTensor(torch.randn(len(v.coordinates), 32, device=device, requires_grad=True), v)

    def maps():
        for coarse, kernel in ((1, 3), (2, 2)):
            x.cache.kernel_map((1,) * 3, (coarse,) * 3, (kernel,) * 3, (1,) * 3, torch.float32)

    timed("maps", maps)
    y = timed("forward", lambda: down(layer(x)).features)
    timed("backward", lambda: y.sum().backward())
    return {"points": len(points), "voxels": len(v.coordinates), "seconds": seconds, "bytes": _peak(device) - before}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _forget_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def _slope(rows: list[dict], stage: str) -> float:
    """Growth of a stage's time with the voxels, fitted in log-log: 1 is linear."""
    voxels, seconds = torch.tensor([[r["voxels"], r["seconds"][stage]] for r in rows]).double().log().T
    voxels = voxels - voxels.mean()
    return float((voxels * seconds).sum() / voxels.square().sum())


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1 << 22, help="points of the largest cloud")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    measure(*batch_of(2048), device)  # libraries load, kernels compile
    rows = []
    print("| points | voxels | " + " | ".join(f"{s} s" for s in STAGES) + " | peak memory |")
    print("|---" * (3 + len(STAGES)) + "|")
    for points in (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22):
        if points > options.largest or points * BYTES_A_POINT > _room(device):
            print(f"| {points:,} | left out: beyond --largest or memory |")
            continue
        rows.append(measure(*batch_of(points), device))
        print(_line(rows[-1]), flush=True)
    slopes = {}
    if len(rows) > 3:
        slopes = {stage: round(_slope(rows[2:], stage), 2) for stage in STAGES}
        print(f"\nslopes from {rows[2]['voxels']:,} voxels on, 1 is linear: {slopes}")
    dense = scan(128, 2048, sweeps=10)
    if len(dense) <= options.largest:
        rows.append(measure(dense, torch.zeros(len(dense), dtype=torch.int64), device))
        print("\n128 beams, ten sweeps:\n" + _line(rows[-1]))
    record.write(f"engine_scaling_{device.type}", {"slopes": slopes, "rows": rows}, device)


def _line(row: dict) -> str:
    cells = (f"{row['points']:,}", f"{row['voxels']:,}", *(f"{row['seconds'][stage]:.3f}" for stage in STAGES))
    return f"| {' | '.join(cells)} | {row['bytes'] / 2**20:.0f} MiB |"


def _room(device: torch.device) -> int:
    """Bytes free for a measurement."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
