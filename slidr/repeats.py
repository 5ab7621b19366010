"""One setting with several seeds, or many settings in a row; what is finished is not run again."""

import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from data.files import InputError, write_text
from slidr import config, pictures, report
from slidr.tasks.published import Published
from slidr.tasks.results import report_scores
from slidr.tasks.scores import Outcome, Scores, mean_scores, read_scores
from slidr.training import Diverged, distributed
from slidr.training.run_folder import require_same

Run = Callable[[config.Downstream], Outcome]
Compare = Callable[[Scores, Path], Published | None]  # published figures beside scores, given a run's model.pt


def seed_name(name: str, seed: int) -> str:
    """The name of the run with that seed."""
    return f"{name}-seed{seed}"


def point_name(name: str, line: str, pct: float) -> str:
    """What the names of the runs of one point of a sweep begin with."""
    return f"{name}-{line}-{pct:g}pct"


def first_run(settings: config.Downstream) -> str | None:
    """The name of the first of several seeds; None where there is one run, or no name yet."""
    return seed_name(settings.name, settings.seed) if settings.seeds > 1 and settings.name else None


def run_seeds(stage: str, run: Run, settings: config.Downstream, name: str) -> list[Outcome]:
    """Runs `<name>-seed<k>` of the settings, one a seed. A finished one is read, a cut-off one goes on.

    Args:
        stage: names the folder of the runs.
        run: what runs once.
        settings: complete: weights named, schedule filled in.
        name: what the runs' names begin with.

    Raises InputError if a run of one of these names has other settings.
    """
    outcomes = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        once = settings.model_copy(update={"seeds": 1, "seed": seed, "name": seed_name(name, seed), "resume": True})
        folder = settings.output / stage / once.name
        if (folder / "report.md").exists():
            require_same(folder, once)
            print(f"{folder} is finished and used as it is")
            outcomes.append(Outcome(read_scores(folder / "scores.json"), folder))
        else:
            outcomes.append(run(once))
    return outcomes


def repeat(stage: str, run: Run, settings: config.Downstream, compare: Compare) -> Outcome:
    """Run all seeds and report mean ± standard deviation in `output/<stage>/<name>/`; arguments as of `run_seeds`."""
    name = settings.name or distributed.from_first(f"{settings.dataset}-{datetime.now():%Y%m%d-%H%M%S}")
    outcomes = run_seeds(stage, run, settings, name)
    runs = [outcome.scores for outcome in outcomes]
    mean, folder = mean_scores(runs), settings.output / stage / name
    if distributed.rank() == 0:
        table = report_scores(
            folder, f"mean of {len(runs)} seeds", mean, compare(mean, outcomes[0].folder / "model.pt")
        )
        table += f"\n\n{settings.remark}" if settings.remark else ""
        seeds = ", ".join(f"{report.cell(run.value)} (seed {settings.seed + i})" for i, run in enumerate(runs))
        text = f"# {stage} {name}\n\n{mean.label}: {seeds}.\n\n{table}\n\n![classes](classes.png)\n"
        write_text(folder / "report.md", text)
        headline = f"{mean.primary} {report.cell(mean.value, mean.deviation)} {mean.unit}"
        print(f"\n{table}\n\n{stage}: {headline} of {seeds}; {folder / 'report.md'}")
    return Outcome(mean, folder)


def sweep(
    stage: str, run: Run, points: dict[str, dict[float, config.Downstream]], folder: Path, compare: Compare
) -> report.Lines:
    """Run each share of the labels for each line, with all seeds: a table, a CSV and a plot in `folder`.

    The runs are called `<folder's name>-<line>-<pct>pct-seed<k>`; the same command goes on where it was cut off.

    Args:
        stage, run: see `run_seeds`.
        points: line -> per cent of the labels -> settings, complete.
        folder: of the sweep, among the runs of the stage.
        compare: see `Compare`; it is given the first line's.
    """
    lines: report.Lines = {line: {} for line in points}
    for pct in next(iter(points.values())):
        for line, at in points.items():
            outcomes = run_seeds(stage, run, at[pct], point_name(folder.name, line, pct))
            lines[line][pct] = mean = mean_scores([outcome.scores for outcome in outcomes])
            if at is next(iter(points.values())):
                example = mean, outcomes[0].folder / "model.pt"
    if distributed.rank() == 0:
        published = compare(*example)
        if published:
            shares = next(iter(points.values()))
            curves = {name: curve for name, curve in published.curves.items() if curve.keys() & shares.keys()}
            lines |= {f"published: {name}": curve for name, curve in curves.items()}
        pictures.sweep(lines, folder / "sweep.png")
        report.write_sweep_csv(lines, folder / "sweep.csv")
        first, *_ = next(iter(points.values())).values()
        said = [published.sentence if published else "", first.remark]
        table = "\n\n".join([report.sweep_table(lines), *filter(None, said)])
        title = f"# Annotation efficiency {folder.name}, {example[0].label}"
        write_text(folder / "report.md", f"{title}\n\n{table}\n\n![{example[0].primary} over labels](sweep.png)\n")
        print(f"\n{table}\n\n{stage}: {folder / 'report.md'}")
    return lines


def search(
    stage: str,
    run: Run,
    points: dict[str, dict[float, config.Fewshot]],
    settings: config.Fewshot,
    folder: Path,
    remark: str,
) -> Outcome:
    """Run each pair of rates, with all seeds: a table, a CSV and the best pair in `folder`, and how to go on with it.

    The same command goes on where it was cut off. A pair that diverges has no score.

    Args:
        stage, run: see `run_seeds`.
        points: rate of the last layer, as a name -> rate of the backbone -> settings, complete and with a name.
        settings: what the rates are for.
        folder: of the search, among the runs of the stage.
        remark: what the figures are of.

    Raises InputError if no pair has a score.
    """
    lines: report.Lines = {head: dict.fromkeys(at) for head, at in points.items()}
    for head, at in points.items():
        for rate, point in at.items():
            try:
                lines[head][rate] = mean_scores([o.scores for o in run_seeds(stage, run, point, point.name)])
            except Diverged as error:
                print(f"{point.name} has no score: {error}", file=sys.stderr)
    found = [(scores, head, rate) for head, line in lines.items() for rate, scores in line.items() if scores]
    if not found:
        raise InputError("every pair of learning rates diverged: give lower ones in --search_lr and --search_lr_head.")
    best, head, rate = max(found, key=lambda pair: pair[0].rank)
    chosen = points[head][rate]
    if distributed.rank() == 0:
        figure = f"{best.primary} {report.cell(best.value, best.deviation)} {best.unit}"
        text = f"Chosen: lr {chosen.lr:g}, lr_head {chosen.lr_head:g} ({figure})."
        grid = {"search_lr": (rate, [*points[head]]), "search_lr_head": (head, [*points])}
        edges = [f"--{key}" for key, (value, all_) in grid.items() if len(all_) > 1 and value in (all_[0], all_[-1])]
        if edges:
            text += f" That is at the edge of the grid: a wider {' and '.join(edges)} runs what is new."
        table = report.sweep_table(lines, r"lr \ lr_head")
        recipe = folder / "recipe.yaml"
        command = ["python", "run.py", stage, str(recipe), "--lr", f"{chosen.lr:g}", "--lr_head", f"{chosen.lr_head:g}"]
        text += f" {remark}\n\nNext: `{shlex.join(command)}`"
        report.write_sweep_csv(lines, folder / "search.csv", ("lr_head", "lr"))
        write_text(folder / "report.md", f"# Learning rates {folder.name}, {best.label}\n\n{table}\n\n{text}\n")
        write_text(recipe, config.to_yaml(settings))
        print(f"\n{table}\n\n{text}\n\n{stage}: {folder / 'report.md'}")
    return Outcome(best, folder)
