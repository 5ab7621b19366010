"""What does a downstream step cost? Fine-tuning, probing and validation on frames of a real data set.

    python -m benchmarks.downstream --kitti FOLDER --nuscenes FOLDER [--batch 1] [--steps 4] [--threads 1]

Runs the published network (Res16UNet34C, 0.1 m voxels) on each data set in a process of its own: seconds a step or
frame, the share of it spent waiting for the loader (its first batch left out), and peak memory. Prints a table and
writes a JSON row under benchmarks/results/.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import torch

from benchmarks import record
from data.files import InputError
from data.frame import Batch
from slidr import config
from slidr.networks.model_file import TaskRecord
from slidr.stages.fewshot import published
from slidr.tasks.segmentation import (
    FineTuning,
    LinearProbe,
    Segmentation,
    open_labelled,
    predict,
    segmentation_loader,
)
from slidr.tasks.start import starting_student
from slidr.training import Learner, make_optimizer, prepare


def timed(batches: Iterable[Batch], work: Callable[[Batch], object], steps: int, device: torch.device) -> dict:
    """Seconds a step, the share of waiting for data, and the process's peak memory so far in GiB (CUDA: of this work).

    One step more is run, and not counted: it starts the loader's processes and warms the caches.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    waited = computed = 0.0
    before = time.perf_counter()
    for i, batch in enumerate(islice(batches, steps + 1)):
        ready = time.perf_counter()
        work(batch.to(device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        after = time.perf_counter()
        if i:
            waited, computed = waited + ready - before, computed + after - ready
        before = after
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return {
        "seconds": round((waited + computed) / steps, 3),
        "waiting": round(waited / (waited + computed), 4),
        "peak_gib": round(peak / 2**30, 2),
    }


def forever(loader) -> Iterable[Batch]:
    """The loader's batches, epoch after epoch: the real frames are few."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def measure(dataset: str, root: str, split: str, options: argparse.Namespace) -> dict:
    """Voxels and points a frame, and `timed` of validation, probing and fine-tuning: the leanest comes first."""
    values = {"dataset": dataset, "root": root, "weights": "random", "device": options.device, "workers": 1}
    values |= {"threads": options.threads}
    tuned, probed = published(config.validate(config.Fewshot, values)), config.validate(config.Linprobe, values)
    device = prepare(tuned)
    reader = open_labelled(tuned, split)
    student, _ = starting_student(tuned, len(reader.dataset.classes))
    task = Segmentation(student.to(device), reader)
    record = TaskRecord(stage="fewshot", dataset=dataset, pct=100.0)
    sizes = []

    def validation_frame(batch: Batch) -> None:
        logits, inverse = task.logits(batch)
        predict(logits)[inverse].cpu()
        sizes.append((len(logits), len(inverse)))

    def training_step(learner: Learner, settings: config.Downstream) -> Callable[[Batch], None]:
        optimizer = make_optimizer(settings, learner.train().parameter_groups())

        def step(batch: Batch) -> None:
            optimizer.zero_grad(set_to_none=True)
            learner(batch).loss.backward()
            optimizer.step()

        return step

    val_loader = segmentation_loader(tuned, device, reader, batch=1, train=False)
    loader = segmentation_loader(tuned, device, reader, options.batch, train=True, augment=True)
    result = {"validation_frame": timed(forever(val_loader), validation_frame, options.steps, device)}
    probing = training_step(LinearProbe(probed, task, record), probed)
    result["probing_step"] = timed(forever(loader), probing, options.steps, device)
    student.requires_grad_(True)
    fine_tuning = training_step(FineTuning(tuned, task, record), tuned)
    result["fine_tuning_step"] = timed(forever(loader), fine_tuning, options.steps, device)
    voxels, points = (round(sum(column) / len(sizes)) for column in zip(*sizes, strict=True))
    return {"voxels": voxels, "points": points, **result}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kitti", help="folder of SemanticKITTI; its validation sequence is read")
    parser.add_argument("--nuscenes", help="folder of nuScenes; all scenes of its tables are read")
    parser.add_argument("--batch", type=int, default=1, help="frames a training step (published: 10 and 16)")
    parser.add_argument("--steps", type=int, default=4, help="steps and frames counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    sets = {"kitti": (options.kitti, "val"), "nuscenes": (options.nuscenes, "all")}
    row = {"threads": options.threads, "batch": options.batch, "steps": options.steps, "sets": {}}
    device = record.device_name(options.device)
    print(f"Res16UNet34C on {device}, {options.threads} CPU thread(s), batch {options.batch}\n")
    print("| data set | voxels a frame | what | seconds | waiting for data | peak memory (GiB) |\n|" + "---|" * 6)
    for dataset, (root, split) in sets.items():
        if root is None:
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # its own peak memory
            try:
                r = row["sets"][dataset] = pool.submit(measure, dataset, root, split, options).result()
            except InputError as error:
                sys.exit(f"downstream.py: {error}")
        for what in ("validation_frame", "probing_step", "fine_tuning_step"):
            t = r[what]
            print(
                f"| {dataset} | {r['voxels']:,} | {what.replace('_', ' ')} | {t['seconds']:.2f} | "
                f"{t['waiting']:.1%} | {t['peak_gib']:.2f} |",
                flush=True,
            )
    record.write("downstream", row, options.device)


if __name__ == "__main__":
    main()
