"""How many frames a second does a loader worker prepare, what does it spend its time on, and how many feed a GPU?

    python -m benchmarks.loader --root NUSCENES [--split all] [--frames 64] [--batch 4] [--step_seconds 0.5 1 2]

On nuScenes keyframes as pretraining reads them (six JPEG images of 1600 x 900, stored SLIC maps, crops of 224 x 416):
CPU seconds a frame on one thread of the parts of the loader, with images decoded whole and at half size
(`--image_shrink=2`); frames a second with 0, 1 and 2 workers, by the clock, so on a machine that does nothing else. The
files are read again and again: they come from memory, a disk may be slower. A step of s seconds on b frames needs
b c / s workers, c = CPU seconds a frame; how long a step takes is for --step_seconds to say. Prints tables and writes a
JSON row under benchmarks/results/.
"""

import argparse
import math
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import record
from data import augment, projection
from data.augment import AugmentSettings
from data.datasets import nuscenes
from data.datasets.dataset import Reader
from data.datasets.nuscenes import NuScenes
from data.frame import Needs
from data.loading import Loader, make_loader
from data.samples import single
from data.samples.single import Single
from data.subsets import select
from data.superpixels import SuperpixelSettings, compute_all

PARTS = (  # none calls another
    ("read scan", nuscenes, "read_points"),
    ("decode images", nuscenes, "read_view"),
    ("project", nuscenes, "project"),
    ("project", projection.Rigid, "apply"),  # of the points to the world
    ("read superpixels", single, "load_or_compute"),
    ("augment", augment, "draw"),
    ("augment", augment, "apply"),
    ("collate", single, "collate"),
)


@contextmanager
def stopwatch() -> Iterator[Counter]:
    """CPU seconds that this process spends in each of PARTS while the context is open."""
    spent = Counter({name: 0.0 for name, *_ in PARTS})

    def timed(name: str, function: Callable) -> Callable:
        @wraps(function)
        def call(*args, **kwargs):
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - began

        return call

    with ExitStack() as stack:
        for name, owner, attribute in PARTS:
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield spent


def open_loader(reader: Reader, maps: Path, batch: int, workers: int, shrink: int = 1) -> Loader:
    """Batches as pretraining takes them."""
    needs = Needs(cameras="all", superpixels=True, shrink=shrink)
    sample = Single(reader, needs, AugmentSettings(), (maps, SuperpixelSettings()))
    return make_loader(sample, batch=batch, workers=workers, seed=0, shuffle=True)


def split_costs(reader: Reader, maps: Path, batch: int, shrink: int) -> dict[str, float]:
    """CPU seconds a frame of each part, of what is left over, and of all, in this process."""
    loader = open_loader(reader, maps, batch, 0, shrink)
    with stopwatch() as spent:
        began = time.process_time()
        for _ in loader:
            pass
        whole = time.process_time() - began
    costs = {**spent, "rest": whole - spent.total(), "all": whole}
    return {name: seconds / len(reader) for name, seconds in costs.items()}


def throughput(reader: Reader, maps: Path, batch: int, workers: int) -> dict[str, float]:
    """Frames a second by the clock, after the start; CPU seconds a frame of all processes, their start too."""
    cpu = _cpu_seconds()
    loader = open_loader(reader, maps, batch, workers)
    batches = iter(loader)
    for _ in range(max(workers, 1)):
        next(batches)  # the workers make their first ones at the same time: later ones would seem to take none
    began = time.perf_counter()
    frames = sum(len(ready.ids) for ready in batches)
    seconds = time.perf_counter() - began
    del batches, loader  # ends the workers: only then are their seconds counted
    return {"frames_per_second": frames / seconds, "cpu_seconds": (_cpu_seconds() - cpu) / len(reader)}


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="nuScenes")
    parser.add_argument("--split", default="all")
    parser.add_argument("--maps", type=Path, default=Path("superpixels/nuscenes"), help="made where they are missing")
    parser.add_argument("--frames", type=int, default=64, help="to prepare; those of the split in turn")
    parser.add_argument("--batch", type=int, default=4, help="of the measurement")
    parser.add_argument("--step_seconds", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="of a training step")
    parser.add_argument("--step_frames", type=int, default=16, help="of a training step")
    options = parser.parse_args()
    if options.frames < 4 * options.batch:
        parser.error("--frames must be at least four times --batch: the first batches are not timed")
    torch.set_num_threads(1)
    split = NuScenes(options.root, options.split)
    compute_all(split.image_files(), options.maps, SuperpixelSettings(), workers=0)
    reader = select(split, [i % len(split) for i in range(options.frames)])
    points = sum(len(split.read(i, Needs()).points) for i in range(len(split))) / len(split)
    costs = {shrink: split_costs(reader, options.maps, options.batch, shrink) for shrink in (1, 2)}
    rates = {workers: throughput(reader, options.maps, options.batch, workers) for workers in (0, 1, 2)}
    needed = {
        step: {shrink: math.ceil(options.step_frames * costs[shrink]["all"] / step) for shrink in costs}
        for step in options.step_seconds
    }
    row = {
        "cores": os.cpu_count(),
        "frames": options.frames,
        "different_frames": min(len(split), options.frames),
        "batch": options.batch,
        "points": round(points),
        "cpu_seconds_a_frame": costs,
        "workers": rates,
        "workers_needed": {"frames": options.step_frames, "step_seconds": needed},
    }
    print(f"{options.frames} frames of {points:,.0f} points and six images, on {record.processor()}\n")
    print(f"{'CPU ms a frame, one thread':<28}{'whole images':>14}{'image_shrink 2':>16}")
    for part in costs[1]:
        print(f"{part:<28}{1000 * costs[1][part]:14.1f}{1000 * costs[2][part]:16.1f}")
    print(f"{'frames a second a worker':<28}{1 / costs[1]['all']:14.2f}{1 / costs[2]['all']:16.2f}")
    print("\nworkers   frames a second   CPU ms a frame")
    for workers, rate in rates.items():
        print(f"{workers:7}{rate['frames_per_second']:18.2f}{1000 * rate['cpu_seconds']:17.1f}")
    print(f"(by the clock, {row['cores']} cores, load average at the end {os.getloadavg()[0]:.1f})")
    print(f"\nworkers = {options.step_frames} frames x CPU seconds a frame / seconds a step, rounded up")
    print("seconds a step   whole images   image_shrink 2")
    for step, workers in needed.items():
        print(f"{step:14g}{workers[1]:15}{workers[2]:17}")
    record.write("loader", row)


if __name__ == "__main__":
    main()
