"""How long does a loader worker take to match the points of two scans?

    python -m benchmarks.matching [--kitti SEMANTIC_KITTI] [--repeats 5]

On one core, for pairs of scans of the built-in world with as many points as nuScenes' and SemanticKITTI's, 10 to 20 m
apart, and for real scans of SemanticKITTI where there are some. Two figures a pair, each the median over pairs and
repeats of the process's own time: the matching (`data.samples.scans.find_matches`: a KD-tree of one scan, the nearest
neighbour of each point of the other), and the whole item (reading two scans from memory, matching, augmentation).
Prints a table and writes a JSON row under benchmarks/results/.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import torch

from benchmarks import record
from data.augment import AugmentSettings
from data.datasets.dataset import Reader
from data.datasets.semantic_kitti import SemanticKitti
from data.datasets.synthetic import SyntheticWorld, write_kitti
from data.files import InputError
from data.frame import Needs
from data.samples.scans import Scans, find_matches

GOAL = 80  # ms to match two scans of nuScenes' size
AZIMUTHS = {"nuScenes' size": 1180, "KITTI's size": 4100}  # lidar columns a turn, for 34,000 and 120,000 points
PAIRS = 6


def built_in(azimuths: int, folder: Path) -> Reader:
    """Seven keyframes of one street, 3 m from each other."""
    write_kitti(folder, SyntheticWorld(1, 1, frames_per_scene=7, image_scale=0.02, azimuths=azimuths))
    return SemanticKitti(folder, "train")


def measure(scans: Scans, repeats: int) -> dict[str, float]:
    """Medians over pairs of scans, taken evenly from all."""
    chosen = scans.pairs[np.linspace(0, len(scans.pairs) - 1, PAIRS).astype(int)]
    rows = []
    for pair in chosen:
        first, second = (scans.reader.read(int(row), Needs(pose=True)) for row in pair)
        only = Scans(scans.reader, scans.augment, scans.min_distance, min_matches=0)
        only.pairs = pair[None]
        for _ in range(repeats):
            matches, seconds = timed(lambda: find_matches(first, second, scans.match_distance))  # noqa: B023
            item_seconds = timed(lambda: only.draw(0, np.random.default_rng(0)))[1]  # noqa: B023
            points = (len(first.points) + len(second.points)) / 2
            apart = np.linalg.norm(first.pose[:3, 3] - second.pose[:3, 3])
            rows.append((points, apart, len(matches), 1000 * seconds, 1000 * item_seconds))
    names = ("points", "metres_apart", "matches", "match_ms", "item_ms")
    return {
        name: round(statistics.median(values), 1) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


def timed(work: Callable) -> tuple[object, float]:
    """What `work` returns, and the seconds of this process that it took."""
    began = time.process_time()
    return work(), time.process_time() - began


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kitti", help="a SemanticKITTI folder, or a part of one: its real scans as well")
    parser.add_argument("--repeats", type=int, default=5, help="of each pair")
    options = parser.parse_args()
    torch.set_num_threads(1)
    augment, results = AugmentSettings(crop=None), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, azimuths in AZIMUTHS.items():
            reader = built_in(azimuths, Path(folder) / str(azimuths))
            results[f"built-in world, {name}"] = measure(Scans(reader, augment), options.repeats)
    if options.kitti:
        try:
            scans = Scans(SemanticKitti(options.kitti, "all"), augment, min_distance=3)
        except InputError as error:
            raise SystemExit(f"matching: {error}") from error
        results["SemanticKITTI"] = measure(scans, options.repeats)
    print(f"\npairs of scans on one core of {record.processor()}; goal for nuScenes' size: {GOAL} ms\n")
    print("| scans | points | m apart | matches | matching, ms | whole item, ms |\n|---|---|---|---|---|---|")
    for name, r in results.items():
        figures = f"{r['points']:,.0f} | {r['metres_apart']:.1f} | {r['matches']:,.0f}"
        print(f"| {name} | {figures} | {r['match_ms']:.0f} | {r['item_ms']:.0f} |")
    record.write("matching", {"scipy": scipy.__version__, "goal_ms": GOAL, "results": results})


if __name__ == "__main__":
    main()
