"""How many scans a second does a CPU turn into features?

    python -m benchmarks.features --root NUSCENES [--scans 20]

Runs the published architecture, Res16UNet34C with voxels of 0.1 m, 1 degree and 0.1 m and random weights, which cost
what trained ones do, on the nuScenes scans under --root, over and over until there are enough: on one thread, then on
two. A scan's time is all that `slidr.load(...)(points)` does: voxels, kernel maps, network, a feature for each point.
On a machine with other work only the CPU's seconds mean something. Prints a table and writes a JSON row under
benchmarks/results/.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import slidr
from benchmarks import record
from data.datasets.nuscenes import NuScenes
from data.files import InputError
from data.frame import Needs
from slidr.networks.model_file import backbone_weights, head_layers, write_model
from slidr.networks.student import Student, StudentSpec

SPEC = StudentSpec(architecture="res16unet34c", width=1.0, grid="cylindrical", voxel_size=(0.1, 1.0, 0.1))


def network() -> slidr.Network:
    """The published network, from a model.pt."""
    student = Student(SPEC, 64, 0.05)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        write_model(
            path, stage="pretrain", spec=SPEC, backbone=backbone_weights(student), point_head=head_layers(student)
        )
        return slidr.load(path)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="datasets/nuscenes", help="a nuScenes folder, or a part of one")
    parser.add_argument("--scans", type=int, default=20)
    options = parser.parse_args()
    try:
        reader = NuScenes(options.root, "all")
        scans = [reader.read(i, Needs()).points for i in range(min(len(reader), options.scans))]
    except InputError as error:
        raise SystemExit(f"features: {error}") from error
    points = round(np.mean([len(scan) for scan in scans]))
    print(
        f"features of {options.scans} scans ({len(scans)} different ones) of {points:,} points, {record.processor()}\n"
    )
    print("| threads | seconds a scan, median | scans a second | CPU seconds | load average |\n|---|---|---|---|---|")
    model, results = network(), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model(scans[0])  # the first call allocates
        times = []
        for i in range(options.scans):
            start = time.perf_counter(), time.process_time()
            model(scans[i % len(scans)])
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        (wall, cpu), load = np.median(times, axis=0), os.getloadavg()[0]
        results[threads] = {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3), "load_average": round(load, 1)}
        print(f"| {threads} | {wall:.2f} | {1 / wall:.2f} | {cpu:.2f} | {load:.1f} |", flush=True)
    record.write("features", {"scans": options.scans, "points": points, "results": results})


if __name__ == "__main__":
    main()
