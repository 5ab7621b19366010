"""What does a pretraining step of each method cost, beside SLidR's?

    python -m benchmarks.method_costs [--methods slidr,scalr] [--batch 2] [--steps 5] [--threads 1]

Each method in a process of its own, with its recipe for the built-in world, at the same batch: median CPU seconds of
forward, backward, optimiser and what follows the step (data are prepared elsewhere), and the process's peak memory.
Prints a table with ratios to SLidR's seconds and writes a JSON row under benchmarks/results/.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from statistics import median

from benchmarks import record
from benchmarks.downstream import forever
from benchmarks.methods import loaded
from data.datasets import find_dataset, open_reader
from slidr.methods import METHODS, find_method
from slidr.stages import pretrain
from slidr.training import make_optimizer, open_loader, prepare

FIRST = "slidr"  # what the others are compared with


def measure(values: dict, steps: int) -> dict[str, float]:
    """Median CPU seconds a step, and peak memory in GiB; one step more is run, and not counted: it warms the caches."""
    settings = loaded(None, pretrain, values)
    device, dataset = prepare(settings), find_dataset(settings.dataset)
    reader = open_reader(dataset, settings.root, settings.train_split, settings.read_options())
    method = find_method(settings.method)(settings, dataset).to(device).train()
    optimizer = make_optimizer(settings, method.parameter_groups())
    loader = open_loader(method.sample(reader, True), settings, device, settings.batch, train=True)
    seconds = []
    for batch in islice(forever(loader), steps + 1):
        began = time.process_time()
        step = method(batch.to(device))
        optimizer.zero_grad(set_to_none=True)
        step.loss.backward()
        optimizer.step()
        method.after_step(step, 1.0)
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    return {"seconds": round(median(seconds[1:]), 3), "peak_gib": round(peak / 2**30, 2)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"some of them, {FIRST} beside")
    parser.add_argument("--batch", type=int, default=2, help="scans (of pointcontrast: pairs of scans) a step")
    parser.add_argument("--steps", type=int, default=5, help="that are counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", default="datasets/synthetic")
    options = parser.parse_args()
    common = {"root": options.root, "batch": options.batch, "threads": options.threads, "workers": 1, "device": "cpu"}
    costs = {}
    print(f"A step of {options.batch} scans of the built-in world, {options.threads} thread(s), {record.processor()}\n")
    print("| method | CPU seconds | of SLidR's | peak memory (GiB) |\n|---|---|---|---|")
    for name in dict.fromkeys((FIRST, *options.methods.split(","))):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # its own peak memory
            c = costs[name] = pool.submit(measure, common | {"method": name}, options.steps).result()
        ratio = c["seconds"] / costs[FIRST]["seconds"]
        print(f"| {name} | {c['seconds']:.2f} | {ratio:.2f} | {c['peak_gib']:.2f} |", flush=True)
    record.write("method_costs", {"batch": options.batch, "steps": options.steps, "methods": costs})


if __name__ == "__main__":
    main()
