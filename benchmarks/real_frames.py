"""Does pretraining help on real frames? SemanticKITTI frames, pretrained against random, several seeds.

    python -m benchmarks.real_frames --root FOLDER --teacher_weights vits14.pth [--seeds 3]
    python -m benchmarks.real_frames --root FOLDER --overfit [--overfit_pct 100] [--overfit_epochs 230]

Each seed pretrains a small network on the train sequences, then probes and fine-tunes it and a random one, scored on
sequence 08. Prints a Markdown table and writes it as a JSON row. A sanity run, not a benchmark: a few frames, a small
network, few steps. With --overfit it asks instead whether fine-tuning learns the train frames by heart, as it must
(`torchrun --nproc_per_node=2 -m benchmarks.real_frames` does that on two cores).
"""

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np

from benchmarks import record
from slidr import config
from slidr.methods import settings_of
from slidr.stages import evaluate, fewshot, linprobe, pretrain
from slidr.training import distributed

STUDENT = {"architecture": "res16unet14c", "width": 0.5, "voxel_size": [0.2, 1.0, 0.2]}


def main() -> None:
    """Run all seeds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder that holds dataset/sequences")
    parser.add_argument("--overfit", action="store_true", help="instead: fine-tune and score on the same train frames")
    parser.add_argument("--overfit_pct", type=float, default=100, help="per cent of the train frames to learn by heart")
    parser.add_argument("--overfit_epochs", type=int, default=230, help="passes over them")
    parser.add_argument("--teacher_weights", help="a ViT-S/14 in DINOv2's layout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=14, help="of pretraining")
    parser.add_argument("--output", default="output/real_frames")
    options = parser.parse_args()
    if options.overfit:
        return overfit(options)
    if options.teacher_weights is None:
        parser.error("--teacher_weights is needed to pretrain")
    began = time.monotonic()
    scores: dict[tuple[str, str], list[float]] = {}
    losses = []
    for seed in range(options.seeds):
        common = {"dataset": "kitti", "root": options.root, "output": options.output, "seed": seed, "workers": 1}
        folder = Path(options.output) / "pretrain" / f"seed{seed}"
        if not (folder / "report.md").exists():  # a finished pretraining is used again
            recipe = {
                "name": folder.name, "train_split": "train", "val_split": "val", "crop": [140, 448],
                "teacher": "dinov2_vits14", "teacher_weights": options.teacher_weights, "min_pairs": 256,
                "batch": 2, "epochs": options.epochs, "lr": 0.1, "validate_every": options.epochs,
            }  # fmt: skip
            pretrain.run(config.validate(settings_of("slidr"), common | STUDENT | recipe))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([next(r["loss"] for r in rows if "loss" in r), [r["loss"] for r in rows if "loss" in r][-1]])
        for start in ("pretrained", "random"):
            weights = "random" if start == "random" else str(folder / "model.pt")
            downstream = common | STUDENT | {"weights": weights, "pictures": 1}
            probe = {"augment": False, "cache_features": True, "batch": 4, "epochs": 20, "validate_every": 20}
            # one rate for both starts: the published 2.0 of the head is for larger batches and thousands of steps
            tune = {"pct": 10, "batch": 3, "epochs": 40, "validate_every": 40, "lr": 0.05, "lr_head": 0.05}
            for name, stage, settings_type, extra in (
                ("linear probe", linprobe, config.Linprobe, probe),
                ("fine-tuned on 10 %", fewshot, config.Fewshot, tune),
            ):
                run_name = {"name": f"{start}{seed}-{datetime.datetime.now():%H%M%S}"}
                result = stage.run(config.validate(settings_type, downstream | extra | run_name))
                scores.setdefault((name, start), []).append(result.scores.value)
        _report(scores, losses, began)


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


def _report(scores: dict, losses: list, began: float) -> None:
    """Print and write what is known so far."""
    seeds = len(losses)
    print(f"\n| mIoU on sequence 08, mean ± std of {seeds} seeds | pretrained | random |\n|---|---|---|")
    for task in dict.fromkeys(name for name, _ in scores):
        cells = [f"{np.mean(v):.1f} ± {np.std(v):.1f}" for v in (scores[task, s] for s in ("pretrained", "random"))]
        print(f"| {task} | {' | '.join(cells)} |")
    minutes = (time.monotonic() - began) / 60
    print(f"\n{seeds} seeds, {minutes:.0f} minutes; pretraining loss (first, last): {losses}", flush=True)
    miou = {f"{task}, {start}": values for (task, start), values in scores.items()}
    record.write("real_frames", {"minutes": round(minutes, 1), "losses": losses, "miou": miou}, "auto")


if __name__ == "__main__":
    main()
