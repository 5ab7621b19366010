"""Published figures from published.yaml, and in one sentence what sets ours apart from them."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from slidr.networks.model_file import Model
from slidr.networks.student import StudentSpec
from slidr.report import counted
from slidr.tasks.scores import NAN, Scores

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """Figures of others, by method and per cent of the labels, and how ours differ."""

    curves: dict[str, dict[float, Scores]]
    sentence: str

    def of_methods(self, methods: set[str]) -> "Published | None":
        """The curves of these methods ("random" among them), whether † or not; None if there are none."""
        curves = {name: curve for name, curve in self.curves.items() if name.rstrip("†").lower() in methods}
        return Published(curves, self.sentence) if curves else None

    @property
    def columns(self) -> dict[str, Scores]:
        """Method -> scores, where all are of one share of the labels."""
        return {method: next(iter(curve.values())) for method, curve in self.curves.items()}


def beside(ours: Scores, model: Model, stage: str, dataset: str, split: str, frames: int) -> Published | None:
    """What was published of the task that a network was trained for; None if nothing was.

    Args:
        ours: figures of the same kind.
        model: the network, with the record of what it was trained for.
        stage: "sweep" for all shares of the labels, else the one that the network was trained in.
        dataset: name of the data set that ours are scored on.
        split: of it.
        frames: how many were scored.
    """
    if model.task is None or model.task.dataset != dataset:
        return None
    curves, sentences, pct = {}, [], model.task.pct
    for source in _sources():
        there = [
            t for t in source["tables"] if t["dataset"] == dataset and ours.primary in t and source["split"] == split
        ]
        tables = [t for t in there if t["stage"] == stage and (stage == "sweep" or t["pct"] == pct)]
        if stage == "sweep":  # of what has no curve the shares that there are
            tables += [t for t in there if t["stage"] in ("fewshot", "detect")]
        elif not tables and stage == "fewshot":
            tables = [t for t in there if t["stage"] == "sweep" and t["pct"] == pct]
        for table in tables:
            for method, scores in _scores(table, ours).items():
                curves.setdefault(method, {}).setdefault(table["pct"], scores)
        if tables:
            share = "" if stage == "sweep" else f", {pct:g} % of {dataset}'s labels"
            sentences.append(f"Published: {source['cite']}{share}. {_differences(source, model, dataset, frames)}")
            sentences += [source["note"]] if stage != "sweep" or "network" not in source else []
            tuned = source.get("rates")
            if tuned and stage != "linprobe" and model.pretraining and model.pretraining.method != tuned["of"]:
                sentences.append(tuned["note"])
    return Published(curves, " ".join(sentences)) if curves else None


@cache
def _sources() -> list[dict]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def _scores(table: dict, ours: Scores) -> dict[str, Scores]:
    """By method; figures of single classes are nan where they were not published."""
    names = [name for name in ours.figures if name != ours.primary]
    return {
        method: replace(
            ours,
            figures=dict(zip(names, table.get("classes", {}).get(method, [NAN] * len(names)), strict=True))
            | {ours.primary: mean},
            comparable={},
            spread={},
            details={},
        )
        for method, mean in table[ours.primary].items()
    }


def _differences(source: dict, model: Model, dataset: str, frames: int) -> str:
    """Network, frames scored and pretraining, where they are not the same."""
    spec, theirs = model.spec, source.get("network") and StudentSpec(**source["network"])
    pretrained, ours = model.pretraining, "with no record of a pretraining"
    if pretrained:
        ours = f"pretrained with {pretrained.method} on {pretrained.dataset}"
    pairs = [(_describe(spec), _describe(theirs), spec == theirs)] if theirs else []
    pairs += [
        (
            f"scored on {counted(frames, 'frame')}",
            f"on {source['frames'][dataset]:,}",
            frames == source["frames"][dataset],
        ),
        (ours, f"on {source['pretrained_on']}", pretrained and pretrained.dataset == source["pretrained_on"]),
    ]
    differ = [f"ours {mine}, theirs {other}" for mine, other, same in pairs if not same]
    if model.task.head != "linear":
        differ.append(f"ours a probe with the head {model.task.head}, theirs linear")
    if model.task.epoch != "last":
        differ.append("ours of the best epoch, theirs of the last")
    same = [mine for mine, _, same in pairs if same]
    text = f"What differs: {'; '.join(differ)}." if differ else "Nothing known differs."
    return text + (f" The same: {', '.join(same)}." if same else "")


def _describe(spec: StudentSpec) -> str:
    edges = " x ".join(f"{edge:g}" for edge in spec.voxel_size)
    return f"{spec.architecture} of width {spec.width:g}, {spec.grid} voxels {edges}"
