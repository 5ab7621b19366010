"""Scores as people and programs read them: Markdown and CSV; one network, several seeds, published rows beside."""

import csv
import math
from pathlib import Path

from data.files import atomic_write
from slidr.tasks.scores import NAN, Scores

# network -> per cent of the labels -> scores; or rate of the last layer -> of the backbone; None = there are none
Lines = dict[str, dict[float, Scores | None]]


def counted(number: int, what: str) -> str:
    """`1 frame`, `1,234 frames`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def cell(value: float, deviation: float = NAN) -> str:
    """`38.3`, `38.3 ± 0.4`, or a dash where there is no value."""
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")


def _rows(columns: dict[str, Scores], comparable: bool) -> list[tuple[str, list[tuple[float, float]]]]:
    """(figure, (value, standard deviation) of every column), nan where there is none."""
    first, *_ = columns.values()
    names = [*first.figures, *(first.comparable if comparable else ())]
    values = [s.figures | s.comparable for s in columns.values()]
    spreads = [s.spread for s in columns.values()]
    return [
        (name, [(v.get(name, NAN), s.get(name, NAN)) for v, s in zip(values, spreads, strict=True)]) for name in names
    ]


def score_table(columns: dict[str, Scores], comparable: bool = False) -> str:
    """A Markdown table: a row a figure, a column a network; a dash where there is none.

    Args:
        columns: network name -> scores of one kind.
        comparable: also the rows that only make sense beside published ones.
    """
    first, *_ = columns.values()
    lines = [f"| {first.measure} ({first.unit}) | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in _rows(columns, comparable):
        name = f"**{name}**" if name == first.primary else name
        lines.append(f"| {name} | " + " | ".join(cell(*c) for c in cells) + " |")
    return "\n".join(lines)


def write_csv(columns: dict[str, Scores], path: Path, comparable: bool = False) -> None:
    """The same table for programs: a column more for each standard deviation, an empty cell where there is no value."""
    spread = [bool(scores.spread) for scores in columns.values()]
    header = ["figure"]
    for name, has_std in zip(columns, spread, strict=True):
        header += [name, f"{name} (std)"] if has_std else [name]
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for name, cells in _rows(columns, comparable):
            flat = [v for c, has_std in zip(cells, spread, strict=True) for v in c[: 1 + has_std]]
            writer.writerow([name, *("" if math.isnan(v) else f"{v:.3f}" for v in flat)])


def sweep_table(lines: Lines, corner: str = "labels (%)") -> str:
    """Annotation efficiency in Markdown: a row a share of the first network's labels, a column a network."""
    first, *_ = lines.values()
    rows = [f"| {corner} | " + " | ".join(lines) + " |", "|---" * (len(lines) + 1) + "|"]
    for pct in first:
        points = (line.get(pct) for line in lines.values())
        rows.append(f"| {pct:g} | " + " | ".join(cell(p.value, p.deviation) if p else "–" for p in points) + " |")
    return "\n".join(rows)


def write_sweep_csv(lines: Lines, path: Path, names: tuple[str, str] = ("network", "labels (%)")) -> None:
    """Annotation efficiency for programs: a row a network and share, empty where a figure is not known."""
    some = next(scores for line in lines.values() for scores in line.values() if scores)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, some.primary, "std"])
        for name, line in lines.items():
            for pct, scores in line.items():
                values = (scores.value, scores.deviation) if scores else (NAN, NAN)
                writer.writerow([name, f"{pct:g}", *("" if math.isnan(v) else f"{v:.3f}" for v in values)])
