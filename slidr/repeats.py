"""One setting with several seeds, or many settings in a row; what is finished is not run again."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from data.files import write_text
from slidr import config, pictures, report
from slidr.tasks.published import Published
from slidr.tasks.results import report_scores
from slidr.tasks.scores import Outcome, Scores, mean_scores, read_scores
from slidr.training import distributed
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
        compare: see `Compare`.
    """
    lines: report.Lines = {line: {} for line in points}
    for pct in next(iter(points.values())):
        for line, at in points.items():
            outcomes = run_seeds(stage, run, at[pct], point_name(folder.name, line, pct))
            lines[line][pct] = mean = mean_scores([outcome.scores for outcome in outcomes])
            example = mean, outcomes[0].folder / "model.pt"
    if distributed.rank() == 0:
        published = compare(*example)
        if published:
            lines |= {f"published: {method}": curve for method, curve in published.curves.items()}
        pictures.sweep(lines, folder / "sweep.png")
        report.write_sweep_csv(lines, folder / "sweep.csv")
        table = report.sweep_table(lines) + (f"\n\n{published.sentence}" if published else "")
        title = f"# Annotation efficiency {folder.name}, {example[0].label}"
        write_text(folder / "report.md", f"{title}\n\n{table}\n\n![{example[0].primary} over labels](sweep.png)\n")
        print(f"\n{table}\n\n{stage}: {folder / 'report.md'}")
    return lines
