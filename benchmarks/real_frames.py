"""Does pretraining help on real frames? SemanticKITTI frames, each method against random, several seeds.

    python -m benchmarks.real_frames --root FOLDER --teacher_weights vits14.pth [--methods slidr,scalr] [--seeds 3]
    python -m benchmarks.real_frames --root FOLDER --overfit [--overfit_pct 100] [--overfit_epochs 230]

Each seed pretrains a small network a method on the train sequences, then probes and fine-tunes it, scored on sequence
08; a random network stands beside. Prints a Markdown table and writes a row for each network, as benchmarks.methods
does; the same command goes on. A sanity run, not a benchmark: a few frames, a small network, few steps. With --overfit
it asks instead whether fine-tuning learns the train frames by heart, as it must (`torchrun --nproc_per_node=2 -m
benchmarks.real_frames` does that on two cores).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks import record
from benchmarks.methods import TASKS, compare, first_and_last_loss, variant
from slidr import config
from slidr.methods import settings_of
from slidr.repeats import run_seeds
from slidr.stages import evaluate, fewshot, pretrain
from slidr.tasks.start import RANDOM
from slidr.training import distributed

STUDENT = {"architecture": "res16unet14c", "width": 0.5, "voxel_size": [0.2, 1.0, 0.2]}
# Batches are small, steps few, the student is narrow
REGRESSION = {"lr": 0.002, "warmup_steps": 20}  # published: 3500 of 87,900 steps
METHODS = {"slidr": {"lr": 0.1}, "scalr": REGRESSION, "late_layers": REGRESSION | {"hidden": 512}}
DOWNSTREAM = {
    "linear probe": {"augment": False, "cache_features": True, "batch": 4, "epochs": 20, "validate_every": 20},
    # one rate for both parts: the published 2.0 of the head is for larger batches and thousands of steps
    "fine-tuned on 10 %": {"batch": 3, "epochs": 40, "validate_every": 40, "lr": 0.05, "lr_head": 0.05},
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder that holds dataset/sequences")
    parser.add_argument("--overfit", action="store_true", help="instead: fine-tune and score on the same train frames")
    parser.add_argument("--overfit_pct", type=float, default=100, help="per cent of the train frames to learn by heart")
    parser.add_argument("--overfit_epochs", type=int, default=230, help="passes over them")
    parser.add_argument("--teacher_weights", help="a ViT-S/14 in DINOv2's layout")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=14, help="of pretraining")
    parser.add_argument("--output", default="output/real_frames")
    options = parser.parse_args()
    if options.overfit:
        return overfit(options)
    if options.teacher_weights is None:
        parser.error("--teacher_weights is needed to pretrain")
    compare(
        *("real_frames", {"epochs": options.epochs}, options.methods.split(","), options.seeds),
        lambda method, seed: measured(method, seed, options),
    )


def measured(method: str, seed: int, options: argparse.Namespace) -> dict:
    """The figures of one network: mIoU of each task, and the first and the last loss of its pretraining."""
    common = {"dataset": "kitti", "root": options.root, "output": options.output, "seed": seed, "workers": 1}
    weights, row = RANDOM, {}
    if method != RANDOM:
        folder = Path(options.output) / "pretrain" / f"{method}-seed{seed}"
        if not (folder / "report.md").exists():  # a finished pretraining is used again
            name, changed = variant(method)
            recipe = {
                "method": name, "name": folder.name, "resume": True,
                "train_split": "train", "val_split": "val", "crop": [140, 448],
                "teacher": "dinov2_vits14", "teacher_weights": options.teacher_weights, "min_pairs": 256,
                "batch": 2, "epochs": options.epochs, "validate_every": options.epochs,
            }  # fmt: skip
            pretrain.run(config.validate(settings_of(name), common | STUDENT | recipe | METHODS[name] | changed))
        weights, row["loss"] = str(folder / "model.pt"), first_and_last_loss(folder)
    for task, (stage, settings_type, more) in TASKS.items():
        settings = config.validate(
            settings_type, common | STUDENT | more | DOWNSTREAM[task] | {"weights": weights, "pictures": 1}
        )
        settings = stage.published(settings) if stage is fewshot else settings
        (outcome,) = run_seeds(stage.__name__.rpartition(".")[2], stage.run, settings, method)
        row[task] = outcome.scores.value
    return row


def overfit(options: argparse.Namespace) -> None:
    """Fine-tune a random network on some train frames, un-augmented, and score those very frames: print the mIoU.

    The same command again goes on with what was cut off.
    """
    common = {"dataset": "kitti", "root": options.root, "output": options.output, "workers": 1, "pictures": 1}
    common["name"] = f"overfit-{options.overfit_pct:g}pct-{options.overfit_epochs}epochs"
    tune = {
        "weights": "random", "pct": options.overfit_pct, "epochs": options.overfit_epochs, "batch": 2, "lr": 0.2,
        "lr_head": 0.3, "augment": False, "validate_every": options.overfit_epochs, "resume": True,
    }  # fmt: skip
    tuned = Path(options.output) / "fewshot" / common["name"]
    if not (tuned / "report.md").exists():
        fewshot.run(config.validate(config.Fewshot, common | STUDENT | tune))
    seen = {"weights": str(tuned / "model.pt"), "split": "train", "subset": tuned / "subset.txt"}
    scores = evaluate.run(config.validate(config.Evaluate, common | seen)).scores
    rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    print(f"mIoU on the frames trained on: {scores.value:.1f} %")
    if distributed.rank() == 0:
        numbers = {
            "processes": distributed.world(),
            "frames_pct": options.overfit_pct,
            "epochs": options.overfit_epochs,
            "loss": [row["loss"] for row in rows if "loss" in row][-1],
            "frames_per_second": float(np.median([row["scans_per_second"] for row in rows if "loss" in row])),
            "miou": scores.value,
            "miou_unseen": [row["val_mIoU"] for row in rows if "val_mIoU" in row][-1],
        }
        record.write("real_frames_overfit", numbers, "auto")


if __name__ == "__main__":
    main()
