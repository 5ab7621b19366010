"""Does pretraining help to find objects? SLidR against random weights on the built-in world, at few labels.

    python -m benchmarks.detection [--seeds 3] [--pct 5,10,20] [--passes 20] [--steps 240] [--threads 1]
    python -m benchmarks.detection --overfit FOLDER [--epochs 150]

Each seed pretrains a network and fine-tunes it and a random one of the same shape on each share of the frames, for
equally many steps, scored on the held-out scenes. Prints a Markdown table of mean ± standard deviation and adds a row
for each run to benchmarks/results/detection.json. The same command goes on where it was cut off.

With --overfit it asks instead whether the boxes of real nuScenes frames (all that are in FOLDER) are learned by heart,
as they must be where targets, decoding and metric agree: it writes benchmarks/results/detection_overfit.json.
"""

import argparse
from statistics import mean, stdev

from benchmarks import record
from benchmarks.methods import loaded, pretrained
from slidr import config, report
from slidr.repeats import run_seeds
from slidr.stages import detect
from slidr.tasks.start import RANDOM

NAME = "detection"
STARTS = RANDOM, "slidr"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pct", default="5,10,20", help="shares of the frames")
    parser.add_argument("--passes", type=int, default=20, help="times that pretraining sees each scan")
    parser.add_argument("--steps", type=int, default=240, help="of fine-tuning, of two frames each")
    parser.add_argument("--overfit", metavar="FOLDER", help="instead: learn the nuScenes frames of a folder by heart")
    parser.add_argument("--epochs", type=int, default=150, help="overfit: passes over them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="output/detection")
    parser.add_argument("--root", default="datasets/synthetic")
    options = parser.parse_args()
    if options.overfit:
        return overfit(options)
    common = {"root": options.root, "output": options.output, "threads": options.threads}
    asked = {"passes": options.passes, "steps": options.steps}
    rows = record.known_rows(NAME, asked)
    for seed in range(options.seeds):
        for start in STARTS:
            for pct in map(float, options.pct.split(",")):
                if (start, seed, pct) not in {(row["start"], row["seed"], row["pct"]) for row in rows}:
                    figures = measured(start, seed, pct, options, common)
                    rows.append({"start": start, "seed": seed, "pct": pct, "figures": figures})
                    record.write(NAME, asked | {"rows": rows})
                    print(table(rows), flush=True)
    print(table(rows))


def measured(start: str, seed: int, pct: float, options: argparse.Namespace, common: dict) -> dict[str, float | None]:
    """The figures of one run; None where a class has no box."""
    values = common | {"seed": seed}
    weights = RANDOM if start == RANDOM else pretrained(start, options.passes, values) / "model.pt"
    values |= {"weights": weights, "pct": pct, "subset": "frames", "batch": 2}
    settings = loaded(config.Detect, detect, values)
    frames = len(detect.share_of(detect.open_with_boxes(settings, settings.train_split), settings))
    epochs = max(1, round(options.steps / -(-frames // settings.batch)))
    settings = settings.model_copy(update={"epochs": epochs, "validate_every": epochs, "pictures": 1})
    (outcome,) = run_seeds("detect", detect.run, detect.complete(settings), f"{start}-{pct:g}pct")
    return {name: None if value != value else value for name, value in outcome.scores.figures.items()}


def table(rows: list[dict]) -> str:
    """A row a start, a column a share of the frames: mean ± standard deviation of mAP."""
    shares = sorted({row["pct"] for row in rows})
    lines = [
        "",
        "| mAP on held-out scenes | " + " | ".join(f"{pct:g} % of the frames" for pct in shares) + " | seeds |",
    ]
    lines.append("|---" * (len(shares) + 2) + "|")
    for start in dict.fromkeys(row["start"] for row in rows):
        own = [[r["figures"]["mAP"] for r in rows if r["start"] == start and r["pct"] == pct] for pct in shares]
        cells = [report.cell(mean(v), stdev(v) if len(v) > 1 else float("nan")) if v else "–" for v in own]
        lines.append(f"| {start} | {' | '.join(cells)} | {max(map(len, own))} |")
    return "\n".join(lines)


def overfit(options: argparse.Namespace) -> None:
    """Train a small random network on frames as they are, score it on those frames: print the AP of each class."""
    settings = config.validate(
        config.Detect,
        {
            "dataset": "nuscenes", "root": options.overfit, "train_split": "all", "val_split": "all", "pct": 100,
            "weights": RANDOM, "architecture": "res16unet14c", "width": 0.25, "bev_channels": 32, "augment": False,
            "batch": 1, "lr": 0.002, "epochs": options.epochs, "validate_every": options.epochs, "workers": 0,
            "output": options.output, "threads": options.threads, "name": f"overfit-{options.epochs}", "resume": True,
        },
    )  # fmt: skip
    (outcome,) = run_seeds("detect", detect.run, detect.complete(settings), settings.name)
    found = {name: value for name, value in outcome.scores.figures.items() if value == value}
    by_class = outcome.scores.details["errors by class"].values()
    rows = {name: [row[name] for row in by_class if row[name] is not None] for name in ("ATE", "ASE", "AOE")}
    errors = {name: mean(values) for name, values in rows.items() if values}
    print(f"of the frames learned by heart: {', '.join(f'{name} {value:.1f}' for name, value in found.items())}")
    shown = ", ".join(f"{name} {value:.3f}" for name, value in errors.items())
    print(f"mean errors of these classes (m, share, radians): {shown}; pictures in {outcome.folder}")
    record.write(f"{NAME}_overfit", {"epochs": options.epochs, "figures": found, "errors": errors})


if __name__ == "__main__":
    main()
