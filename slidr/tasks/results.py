"""What a run that scores a network leaves: pictures, tables, scores.json and a report."""

from pathlib import Path

import numpy as np

from data.datasets.dataset import Reader
from slidr import config, pictures, report
from slidr.networks.model_file import read_model
from slidr.tasks.published import Published, beside
from slidr.tasks.scores import Outcome, Scores, write_scores
from slidr.tasks.start import network_name
from slidr.tasks.task import Task
from slidr.training import Run


def finish(
    log: Run,
    settings: config.Downstream | config.Evaluate | config.Zeroshot,
    task: Task,
    reader: Reader,
    scores: Scores | None,
    weights: str,
    model: Path | None = None,
    remark: str = "",
) -> Outcome:
    """Draw, report and print (the first process alone); the run is finished then.

    Args:
        reader: the split that was scored.
        scores: None if there was nothing to score against.
        weights: what was scored, or what the run began with.
        model: model.pt of the network that was scored; what it was trained for decides the published rows.
        remark: what else is to be said of the scores.
    """
    if not log.first:
        return Outcome(scores, log.folder)
    drawn = draw_frames(task, len(reader), settings.pictures, log.folder)
    text = "The split has no labels, hence no scores."
    if scores:
        published = published_rows(settings, reader, None, scores, model)
        text = report_scores(log.folder, network_name(weights), scores, published)
        drawn.insert(0, "classes.png")
        if log.rows:
            pictures.curves(log.rows, log.folder / "curves.png", scores.unit)
            drawn.insert(0, "curves.png")
            log.show(log.rows[-1]["step"], *drawn)
    text += f"\n\n{remark}" if remark else ""
    log.finish(
        f"# {log.stage} {log.folder.name}\n\n"
        f"Weights: {weights}. Split: {settings.scored}, {report.counted(len(reader), 'frame')}.\n\n{text}\n\n"
        f"Again: `python run.py {log.stage} {log.folder / 'config.yaml'} --name NEW`\n\n"
        + "\n".join(f"![{name}]({name})" for name in drawn)
        + "\n"
    )
    headline = f"{scores.primary} {scores.value:.1f} {scores.unit}; " if scores else ""
    print(f"\n{text}\n\n{log.stage}: {headline}{log.folder / 'report.md'}")
    return Outcome(scores, log.folder)


def draw_frames(task: Task, frames: int, pictures_wanted: int, folder: Path) -> list[str]:
    """Draw so many frames, evenly spaced over the `frames` of the split; the names of the pictures."""
    rows = np.unique(np.linspace(0, frames - 1, pictures_wanted).astype(int)) if pictures_wanted else []
    digits = len(str(len(rows) - 1))  # names that sort
    return [name for i, row in enumerate(rows) for name in task.draw(int(row), folder, f"{i:0{digits}d}")]


def published_rows(
    settings: config.Downstream | config.Evaluate,
    reader: Reader,
    stage: str | None,
    scores: Scores,
    model: Path | None,
) -> Published | None:
    """Published figures of the task that the network of a model.pt was trained for, if wanted and if there are any.

    Args:
        reader: the split that was scored.
        stage: "sweep" for all shares of the labels; None = the stage that the network was trained in.
    """
    trained = read_model(model) if model and settings.compare else None
    if trained is None or trained.task is None:
        return None
    return beside(scores, trained, stage or trained.task.stage, reader.dataset.name, settings.scored, len(reader))


def report_scores(folder: Path, name: str, scores: Scores, published: Published | None) -> str:
    """Write scores.json, scores.csv and classes.png, published figures beside; the table in Markdown."""
    write_scores(folder / "scores.json", scores)
    columns = {f"ours: {name}": scores} | published.columns if published else {name: scores}
    report.write_csv(columns, folder / "scores.csv", comparable=bool(published))
    pictures.bar_chart(columns, folder / "classes.png")
    table = report.score_table(columns, comparable=bool(published))
    return f"{table}\n\n{published.sentence}" if published else table
