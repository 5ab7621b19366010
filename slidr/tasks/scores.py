"""How well a network does a task: all that seeds, sweeps and reports know of it."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from data.files import InputError, read_text, write_text

NAN = float("nan")
_PARTS = "figures", "comparable", "spread", "details"  # the dictionaries of Scores


@dataclass(frozen=True)
class Scores:
    """Figures by name, in the order of tables; nan = there is none.

    figures: values in `unit`.
    primary: the name of the figure that counts.
    measure: what the others are ("IoU" of a class, say).
    unit: of all figures: "%", "m".
    direction: whether more or less is better.
    comparable: figures counted the way somebody else counts, shown only beside published ones.
    spread: standard deviations (n - 1) of figures that are the mean of several seeds.
    details: plain values for scores.json: a confusion matrix, say.
    """

    figures: dict[str, float]
    primary: str
    measure: str
    unit: str = "%"
    direction: Literal["max", "min"] = "max"
    comparable: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    details: dict = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The primary figure."""
        return self.figures[self.primary]

    @property
    def deviation(self) -> float:
        """Its standard deviation over seeds; nan if there is none."""
        return self.spread.get(self.primary, NAN)

    @property
    def label(self) -> str:
        """The primary figure's name, unit and, if less is better, direction."""
        return f"{self.primary} ({self.unit}{', less is better' if self.direction == 'min' else ''})"

    @property
    def rank(self) -> float:
        """Grows as the primary figure gets better; nan is the worst."""
        return -math.inf if math.isnan(self.value) else self.value if self.direction == "max" else -self.value

    def row(self) -> dict[str, float]:
        """For the log of a validation: val_<primary>, and val_<measure>/<name> of the other figures that there are."""
        others = {name: v for name, v in self.figures.items() if name != self.primary and not math.isnan(v)}
        return {f"val_{self.primary}": self.value} | {f"val_{self.measure.lower()}/{n}": v for n, v in others.items()}


@dataclass(frozen=True)
class Outcome:
    """What a stage that scores a network gives back: its scores (None: nothing to score against) and its folder."""

    scores: Scores | None
    folder: Path


def mean_scores(runs: list[Scores]) -> Scores:
    """Mean of several runs' figures, with standard deviations if there are at least two; nan where one has none.

    Raises InputError if they do not have the same figures.
    """
    if len({(*run.figures, *run.comparable) for run in runs}) > 1:
        raise InputError("the scores.json of these runs have different figures: remove the folder of a damaged one.")
    figures, comparable = (
        {name: [getattr(run, part)[name] for run in runs] for name in getattr(runs[0], part)}
        for part in ("figures", "comparable")
    )
    spread = {name: float(np.std(v, ddof=1)) for name, v in (figures | comparable).items()} if len(runs) > 1 else {}
    mean = ({name: float(np.mean(v)) for name, v in part.items()} for part in (figures, comparable))
    return replace(runs[0], **dict(zip(("figures", "comparable"), mean, strict=True)), spread=spread, details={})


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores as JSON; nan becomes null."""
    plain = asdict(scores)
    for part in _PARTS:
        plain[part] = {n: None if isinstance(v, float) and math.isnan(v) else v for n, v in plain[part].items()}
    write_text(path, json.dumps(plain) + "\n")


def read_scores(path: Path) -> Scores:
    """The scores written by `write_scores`; InputError if the file is broken."""
    try:
        plain = json.loads(read_text(path, 10_000_000, follow=False))
        for part in _PARTS:
            plain[part] = {name: NAN if value is None else value for name, value in plain[part].items()}
        scores = Scores(**plain)
        texts = scores.measure, scores.unit, scores.direction, *scores.figures, *scores.comparable
        if not all(text.isprintable() and len(text) <= 100 for text in texts):
            raise ValueError("names have up to 100 letters")
        for name in (scores.primary, *scores.figures):
            float(scores.figures[name])
        return scores
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} holds no scores; remove its folder and run again.") from error
