"""What does a forward pass of DepthContrast's point network cost on a CPU?

    python -m benchmarks.pointnet2 [--clouds 8] [--points 16384] [--repeats 3]

Views of scans of the built-in world (34,000 points, as nuScenes' have), in train mode, without a graph for gradients,
on one and on two threads: the processor's seconds, those of all threads together, and the clock's, the least of the
repeats. Prints a table and writes a JSON row under benchmarks/results/.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import record
from benchmarks.matching import AZIMUTHS, built_in
from data.frame import Batch
from data.samples.views import Views
from slidr.networks.pointnet2 import PointNet2


def views(clouds: int, points: int) -> Batch:
    """So many clouds of so many points each."""
    with tempfile.TemporaryDirectory() as folder:
        reader = built_in(AZIMUTHS["nuScenes' size"], Path(folder))
        sample = Views(reader, {"view": points})
        items = [sample.draw(i % len(sample), np.random.default_rng(i))[0] for i in range(clouds)]
        return sample.collate(items)["view"]


@torch.no_grad()
def measure(network: PointNet2, view: Batch, clouds: int, repeats: int) -> dict[str, float]:
    """CPU and wall-clock seconds of a pass on the threads that torch has now."""
    xyz, features = (x.unflatten(0, (clouds, -1)) for x in (view.points[:, :3], view.features))
    seconds = []
    for _ in range(repeats):
        cpu, clock = time.process_time(), time.perf_counter()
        network(xyz, features)
        seconds.append((time.process_time() - cpu, time.perf_counter() - clock))
    cpu, clock = map(min, zip(*seconds, strict=True))
    return {"cpu_seconds": round(cpu, 2), "seconds": round(clock, 2)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clouds", type=int, default=8)
    parser.add_argument("--points", type=int, default=16_384, help="a cloud")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    view, network, results = views(options.clouds, options.points), PointNet2(), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results[threads] = measure(network, view, options.clouds, options.repeats)
    print(f"PointNet++, forward, {options.clouds} clouds of {options.points:,} points, on {record.processor()}\n")
    print("| threads | CPU seconds | seconds |\n|---|---|---|")
    for threads, r in results.items():
        print(f"| {threads} | {r['cpu_seconds']:.1f} | {r['seconds']:.1f} |")
    record.write("pointnet2", {"clouds": options.clouds, "points": options.points, "by_threads": results})


if __name__ == "__main__":
    main()
