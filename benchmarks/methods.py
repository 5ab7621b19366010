"""Which pretraining helps most at this size? Every method on the built-in world, at equal numbers of scans seen.

    python -m benchmarks.methods [--seeds 3] [--passes 20] [--methods slidr,ppkt] [--threads 1]

Each seed pretrains one network a method, then probes it and fine-tunes it on 10 % of the labels (one scene), scored on
the held-out scenes; a random network stands beside. Every method has its own recipe for this world, every network the
same shape, probe and fine-tuning. `--methods late_layers+class_weight=0` departs from the recipe in that setting.

Prints a Markdown table of mean ± standard deviation and adds a row for each network to benchmarks/results/methods.json.
The same command goes on where it was cut off: what has a row is not run again.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

from benchmarks import record
from slidr import config, report
from slidr.methods import settings_of
from slidr.repeats import run_seeds, seed_name
from slidr.stages import fewshot, linprobe, pretrain
from slidr.tasks.start import RANDOM
from slidr.training.run_folder import require_same

NAME = "methods"
METHODS = "pointcontrast", "depthcontrast", "ppkt", "slidr", "st_slidr", "scalr", "late_layers"
SCANS_AN_ITEM = {"pointcontrast": 2}  # of the others 1
TASKS = {"linear probe": (linprobe, config.Linprobe, {}), "fine-tuned on 10 %": (fewshot, config.Fewshot, {"pct": 10})}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=20, help="times that each training scan is seen")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, or with settings: scalr+lr=0.01")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="output/methods")
    parser.add_argument("--root", default="datasets/synthetic")
    options = parser.parse_args()
    common = {"root": options.root, "output": options.output, "threads": options.threads}
    compare(
        *(NAME, {"passes": options.passes}, options.methods.split(","), options.seeds),
        lambda method, seed: measured(method, seed, options.passes, common),
    )


def compare(name: str, asked: dict, methods: Iterable[str], seeds: int, measured: Callable[[str, int], dict]) -> None:
    """Measure what has no row yet, of a random network and of each method; write and print each row at once.

    Args:
        name: of the benchmark.
        asked: how it is asked for; rows that were measured otherwise do not count.
        methods: their names.
        seeds: of each.
        measured: method and seed -> the figures of one network.
    """
    rows = record.known_rows(name, asked)
    for seed in range(seeds):
        for method in (RANDOM, *methods):
            if (method, seed) not in {(row["method"], row["seed"]) for row in rows}:
                rows.append({"method": method, "seed": seed} | measured(method, seed))
                record.write(name, asked | {"rows": rows})
                print(table(rows), flush=True)
    print(table(rows))


def measured(method: str, seed: int, passes: int, values: dict) -> dict:
    """The figures of one network: mIoU of each task, and the first and the last loss of its pretraining."""
    values = values | {"seed": seed}
    weights, row = RANDOM, {}
    if method != RANDOM:
        folder = pretrained(method, passes, values)
        weights, row["loss"] = str(folder / "model.pt"), first_and_last_loss(folder)
    for task, (stage, settings_type, more) in TASKS.items():
        settings = loaded(settings_type, stage, values | more | {"weights": weights})
        settings = stage.published(settings) if stage is fewshot else settings
        (outcome,) = run_seeds(stage.__name__.rpartition(".")[2], stage.run, settings, method)
        row[task] = outcome.scores.value
    return row


def first_and_last_loss(folder: Path) -> list[float]:
    """The first and the last loss of a finished pretraining."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    return [losses[0], losses[-1]]


def loaded(settings_type: type[config.Settings] | None, stage: ModuleType, values: dict) -> config.Settings:
    """The settings of a stage: its recipe for the built-in world, and these values."""
    words = [f"--{name}={value}" for name, value in values.items()]
    return config.load(settings_type, words, stage.__name__.rpartition(".")[2], settings_of)


def pretrained(method: str, passes: int, values: dict) -> Path:
    """The folder of a pretraining; a finished one is used again."""
    name, changed = variant(method)
    epochs = max(1, passes // SCANS_AN_ITEM.get(name, 1))
    values = values | {"method": name, "epochs": epochs, "name": seed_name(method, values["seed"]), "resume": True}
    settings, folder = loaded(None, pretrain, values | changed), Path(values["output"]) / "pretrain" / values["name"]
    if not (folder / "report.md").exists():
        return pretrain.run(settings)
    require_same(folder, settings)
    return folder


def variant(method: str) -> tuple[str, dict[str, str]]:
    """The method's own name, and the settings that follow it: `late_layers+class_weight=0`."""
    name, *words = method.split("+")
    return name, dict(word.split("=", 1) for word in words)


def table(rows: list[dict]) -> str:
    """A row a method, a column a task: mean ± standard deviation of mIoU."""
    lines = ["", "| mIoU on held-out scenes | " + " | ".join(TASKS) + " | seeds |", "|---" * (len(TASKS) + 2) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        values = [[row[task] for row in own] for task in TASKS]
        cells = [report.cell(mean(v), stdev(v) if len(v) > 1 else float("nan")) for v in values]
        lines.append(f"| {method} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
