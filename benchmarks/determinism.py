"""How far do runs of one seed lie apart, and what does `--deterministic` cost?

    python -m benchmarks.determinism [--runs 3] [--epochs 2] [--threads 2] [--device cpu]

Pretrains on a small built-in world several times with the same seed, by default and with `--deterministic`, each run a
process of its own. Prints the spread of the losses (largest difference at any logged step, as a share of the loss),
whether the parameters have the same bits, and the seconds a run trained. Writes a JSON row under benchmarks/results/.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import record

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    row = {"runs": options.runs, "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        world = ["--root", f"{folder}/world"]
        _run(folder, "synth", *world, "--layout=nuscenes", "--train_scenes=4", "--val_scenes=1")
        _run(folder, "superpixels", *world)
        print("\n| | spread of the loss | same parameters | seconds |\n|---|---|---|---|")
        for way, more in (("default", []), ("deterministic", ["--deterministic"])):
            found = [_pretrain(folder, f"{way}{i}", options, *world, *more) for i in range(options.runs)]
            losses = [losses for losses, _, _ in found]
            spread = max((max(step) - min(step)) / statistics.mean(step) for step in zip(*losses, strict=True))
            same = all(_same(found[0][1], weights) for _, weights, _ in found)
            seconds = statistics.median(seconds for _, _, seconds in found)
            print(f"| {way} | {spread:.1e} | {'yes' if same else 'no'} | {seconds:.1f} |", flush=True)
            row[way] = {"loss_spread": spread, "same_parameters": same, "seconds": round(seconds, 1)}
    record.write("determinism", row, options.device)


def _pretrain(folder: str, name: str, options: argparse.Namespace, *words: str) -> tuple[list[float], dict, float]:
    """(logged losses, parameters, seconds of training) of one run."""
    means = [f"--threads={options.threads}", f"--device={options.device}", f"--epochs={options.epochs}"]
    _run(folder, "pretrain", *words, *means, f"--validate_every={options.epochs}", "--name", name)
    run = Path(folder) / "output" / "pretrain" / name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = torch.load(run / "model.pt", weights_only=True)["backbone"]
    (checkpoint,) = (run / "checkpoints").glob("step-*.pt")
    seconds = torch.load(checkpoint, weights_only=True)["seconds"]
    return [r["loss"] for r in rows if "loss" in r], weights, seconds


def _run(folder: str, *words: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def _same(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


if __name__ == "__main__":
    main()
