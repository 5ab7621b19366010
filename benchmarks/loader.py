"""How many processes keep a training step fed?

    python -m benchmarks.loader --root NUSCENES [--frames 16] [--step_seconds 0.5 1 2] [--repeats 9]

What a worker does with one frame of six 1600 x 900 images under the published recipe, part by part, in seconds of one
core (the best of the repeats), on real frames whose files are in the system's cache: disks are not measured. Then what
the whole loader gives the training process, in wall time, with 0, 1 and 2 workers: this needs as many idle cores, so
the machine's load before it began stands beside it. A step of s seconds for a batch of n frames needs w = n * f / s
workers, where f is the seconds of a frame; s is yours to say, this measures f. Prints tables and writes a JSON row
under benchmarks/results/.
"""

import argparse
import datetime
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch

from benchmarks.engine_cpu import _processor
from data.augment import AugmentSettings, apply, draw
from data.disk import InputError, atomic_write, read_image
from data.frame import Reader, collate
from data.loading import make_loader, select
from data.nuscenes import NuScenes
from data.superpixels import SuperpixelSettings, load_or_compute

WORKERS = (0, 1, 2)
BATCH = 4  # of the loader that is timed: small, so that a few batches are many
DRAWS = 5  # augmentations of a frame: their costs differ


def best(f: Callable[[], object], repeats: int) -> float:
    """Seconds of the processor that `f` takes, the least of some."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        f()
        seconds.append(time.process_time() - began)
    return min(seconds)


def parts(reader: Reader, maps: tuple[Path, SuperpixelSettings], repeats: int) -> dict[str, float]:
    """Seconds of a frame by what is done with it, the mean of all frames and of some augmentations."""
    rows, settings = [], AugmentSettings()
    for index in range(len(reader)):
        frame = reader.read(index, labels=False)
        files = [view.file for view in frame.cameras]
        for view in frame.cameras:
            view.superpixels = load_or_compute(view, *maps)
        drawn = [draw(np.random.default_rng(i), frame, settings) for i in range(DRAWS)]
        batch = [apply(frame, each) for each in drawn]
        work = {
            "decode": lambda files=files: [read_image(file) for file in files],
            "read": lambda i=index: reader.read(i, labels=False),
            "superpixels": lambda f=frame: [load_or_compute(view, *maps) for view in f.cameras],
            "draw": lambda f=frame: [draw(np.random.default_rng(i), f, settings) for i in range(DRAWS)],
            "crop": lambda f=frame, drawn=drawn: [apply(f, each) for each in drawn],
            "collate": lambda batch=batch: collate(batch),
        }
        row = {
            name: best(f, repeats) / (DRAWS if name in ("draw", "crop", "collate") else 1) for name, f in work.items()
        }
        row["points and pairs"] = row.pop("read") - row["decode"]
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def throughput(reader: Reader, maps: tuple[Path, SuperpixelSettings], workers: int, frames: int) -> float:
    """Frames a second that the loader hands over in its second epoch, when its workers have started."""
    many = select(reader, [i % len(reader) for i in range(frames)])
    loader = make_loader(
        many, batch=BATCH, augment=AugmentSettings(), superpixels=maps, images=True, labels=False, workers=workers,
        seed=0, shuffle=True,
    )  # fmt: skip
    for epoch in range(2):
        loader.set_epoch(epoch)
        began = time.perf_counter()
        for _ in loader:
            pass
    return frames / (time.perf_counter() - began)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="datasets/nuscenes", help="a nuScenes folder, or a part of one")
    parser.add_argument("--frames", type=int, default=16, help="frames of a training step")
    parser.add_argument("--step_seconds", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="of your device")
    parser.add_argument("--epoch_frames", type=int, default=32, help="frames that the loader hands over")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        reader = NuScenes(options.root, "all")
    except InputError as error:
        raise SystemExit(f"loader: {error}") from error
    reader = select(reader, list(range(min(2, len(reader)))))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        maps = Path(folder), SuperpixelSettings()  # made at first sight
        seconds = parts(reader, maps, options.repeats)
        speeds = {workers: throughput(reader, maps, workers, options.epoch_frames) for workers in WORKERS}
    frame = sum(seconds.values())
    needed = {s: math.ceil(options.frames * frame / s) for s in options.step_seconds}
    print(f"a frame of six 1600 x 900 images, one core of {_processor()}\n")
    print("| part | ms | share |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {1e3 * value:.1f} | {value / frame:.0%} |")
    print(f"| all | {1e3 * frame:.1f} | {1 / frame:.1f} frames/s a worker |\n")
    print(f"| workers ({os.cpu_count()} cores, load {load:.1f} before) | frames/s of the loader |\n|---|---|")
    for workers, speed in speeds.items():
        print(f"| {workers} | {speed:.1f} |")
    print(f"\na step of s seconds for {options.frames} frames needs w = {options.frames} * {frame:.3f} / s workers:")
    for s, workers in needed.items():
        print(f"  s = {s:g}: {workers}")
    row = {
        "benchmark": "loader",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": _processor(),
        "cores": os.cpu_count(),
        "load_before": load,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "frame_seconds": frame,
        "parts_seconds": seconds,
        "loader_frames_per_second": speeds,
        "frames_a_step": options.frames,
        "workers_by_step_seconds": needed,
    }
    path = Path("benchmarks/results/loader.json")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(row, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
