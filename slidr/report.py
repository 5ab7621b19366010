"""Scores as people and programs read them: Markdown, CSV, JSON; one network, several seeds, published rows beside."""

import csv
import json
import math
from pathlib import Path

import numpy as np

from data.disk import InputError, atomic_write, read_text

NAN = float("nan")
_COMPATIBLE = "mIoU as the published code counts"


def mean_scores(runs: list[dict]) -> dict:
    """Mean of several runs' scores, with the standard deviations (n - 1) under `std` if there are at least two."""
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    stacked = {name: np.array([run[name] for run in runs], float) for name in ("iou", *names)}
    mean = {name: values.mean(0).tolist() for name, values in stacked.items()}
    if len(runs) > 1:
        mean["std"] = {name: values.std(0, ddof=1).tolist() for name, values in stacked.items()}
    return mean


def save_scores(path: Path, scores: dict) -> None:
    """Write scores as JSON; what is not a number becomes null."""
    plain = scores | {"iou": [None if math.isnan(v) else v for v in scores["iou"]]}
    plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in plain.items()}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain) + "\n")


def load_scores(path: Path) -> dict:
    """The scores written by `save_scores`; InputError if the file is broken."""
    try:
        plain = json.loads(read_text(path))
        scores = {k: NAN if v is None else v for k, v in plain.items()}
        return scores | {"iou": [NAN if v is None else v for v in plain["iou"]]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no scores; remove its folder and run again.") from error


def _rows(columns: dict[str, dict], classes: tuple[str, ...]) -> list[tuple[str, list[tuple[float, float]]]]:
    """(class or mean, (value, standard deviation) of every column), in per cent, nan where there is none."""

    def values(scores: dict) -> list[float]:
        iou = scores.get("iou", [NAN] * len(classes))[1:]
        return [100 * v for v in (*iou, scores.get("miou", NAN), scores.get("code_compatible_miou", NAN))]

    cells = [list(zip(values(s), values(s.get("std", {})), strict=True)) for s in columns.values()]
    names = [*classes[1:], "mIoU", _COMPATIBLE]
    return [(name, [column[i] for column in cells]) for i, name in enumerate(names)]


def percent(value: float, deviation: float = NAN) -> str:
    """A cell: `38.3`, `38.3 ± 0.4`, or a dash where there is no value."""
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")


def score_table(columns: dict[str, dict], classes: tuple[str, ...]) -> str:
    """A Markdown table: a row a class, a column a network; IoU in per cent, a dash where a class is absent.

    Args:
        columns: network name -> scores (`ConfusionMatrix.scores()` or `mean_scores`).
        classes: class names, [0] ignored.
    """
    lines = ["| class | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in _rows(columns, classes):
        name = f"**{name}**" if name == "mIoU" else name
        lines.append(f"| {name} | " + " | ".join(percent(*cell) for cell in cells) + " |")
    return "\n".join(lines)


def write_csv(columns: dict[str, dict], classes: tuple[str, ...], path: Path) -> None:
    """The same table for programs: a column more for each standard deviation, an empty cell where there is no value."""
    spread = ["std" in scores for scores in columns.values()]
    header = ["class"]
    for name, has_std in zip(columns, spread, strict=True):
        header += [name, f"{name} (std)"] if has_std else [name]
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for name, cells in _rows(columns, classes):
            flat = [v for cell, has_std in zip(cells, spread, strict=True) for v in cell[: 1 + has_std]]
            writer.writerow([name, *("" if math.isnan(v) else f"{v:.3f}" for v in flat)])


Lines = dict[str, dict[float, tuple[float, float]]]  # network -> per cent of the labels -> (mIoU, deviation or nan)


def sweep_table(lines: Lines, pcts: tuple[float, ...]) -> str:
    """Annotation efficiency in Markdown: a row a share of the labels, a column a network; mIoU in per cent."""
    rows = ["| labels (%) | " + " | ".join(lines) + " |", "|---" * (len(lines) + 1) + "|"]
    for pct in pcts:
        cells = (line.get(pct, (NAN, NAN)) for line in lines.values())
        rows.append(f"| {pct:g} | " + " | ".join(percent(100 * v, 100 * deviation) for v, deviation in cells) + " |")
    return "\n".join(rows)


def write_sweep_csv(lines: Lines, path: Path) -> None:
    """Annotation efficiency for programs: a row a network and share, empty where a deviation is not known."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "labels (%)", "mIoU", "std"])
        for name, line in lines.items():
            for pct, values in line.items():
                writer.writerow([name, f"{pct:g}", *("" if math.isnan(v) else f"{100 * v:.3f}" for v in values)])
