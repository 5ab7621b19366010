"""What linear probing, fine-tuning and evaluation share: the start, the score, the report."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from data.augment import AugmentSettings
from data.datasets import open_reader
from data.disk import InputError
from data.frame import Batch, Reader
from data.labels import COLOURS
from data.loading import make_loader, select
from slidr import config, pictures
from slidr.segmentation import ConfusionMatrix, predict
from slidr.student import (
    SPEC_KEYS,
    Student,
    StudentSpec,
    load_weights,
    newest_checkpoint,
    read_checkpoint,
    save_student,
)
from slidr.training import Run
from triton_kernels import backend


def starting_student(settings: config.Downstream, classes: int) -> tuple[Student, str]:
    """The student to probe or fine-tune with a new last layer, and a sentence on where its weights come from.

    Raises InputError if no pretraining is found, or if the weights' architecture or voxels differ from the settings.
    """
    asked = {name: getattr(settings, name) for name in SPEC_KEYS if getattr(settings, name) is not None}
    if settings.weights == "random":
        recipe = config.load(config.Pretrain, ["--dataset", settings.dataset], "slidr")
        spec = StudentSpec(**({name: getattr(recipe, name) for name in SPEC_KEYS} | asked))
        return Student(spec, classes, settings.bn_momentum), "random"
    path = Path(settings.weights) if settings.weights else newest_checkpoint(settings.output, "pretrain")
    if path is None:
        raise InputError(
            f"there is no pretraining under {settings.output / 'pretrain'}: run `python run.py pretrain` first, "
            "or pass --weights random or a model.pt."
        )
    content = read_checkpoint(path)
    student = Student(StudentSpec(**(content["spec"] | asked)), classes, settings.bn_momentum)
    load_weights(student, content, path, with_head=False)
    return student, f"{path}" + ("" if settings.weights else " (the newest pretraining)")


def every_nth(items: int, pct: float) -> list[int]:
    """Indices of `pct` per cent of `items`, evenly from the first on: 1 % takes every 100th (published code)."""
    return [math.floor(k * 100 / pct) for k in range(math.ceil(items * pct / 100 - 1e-9))]


def choose_subset(reader: Reader, pct: float, subset: str) -> Reader:
    """The reader restricted to `pct` per cent of its scenes or frames. Raises InputError if nothing is left."""
    if subset == "scenes":
        names = list(dict.fromkeys(reader.scenes))
        kept = {names[i] for i in every_nth(len(names), pct)}
        rows = [i for i, scene in enumerate(reader.scenes) if scene in kept]
    else:
        rows = every_nth(len(reader.ids), pct)
    if not rows:
        raise InputError(f"{pct:g} % of the {subset} of {reader.name} leave no frame; raise --pct.")
    return select(reader, rows)


def segmentation_loader(settings: config.WithRun, reader: Reader, batch: int, augment: bool, shuffle: bool):
    """Batches of points and labels, without images."""
    return make_loader(
        reader,
        batch=batch,
        augment=AugmentSettings(crop=None, train=True, cuboid=0.0) if augment else None,
        superpixels=None,
        images=False,
        labels=True,
        workers=settings.workers,
        seed=settings.seed,
        shuffle=shuffle,
    )


@torch.no_grad()
def evaluate(student: Student, loader: Iterable[Batch], classes: tuple[str, ...], device: torch.device):
    """Confusion over all raw points of the split: each point gets its voxel's prediction (paper, section 4.1)."""
    student.eval()
    confusion = ConfusionMatrix(len(classes))
    for batch in loader:
        batch = batch.to(device)
        logits, voxels = student(batch)
        confusion.update(predict(logits)[voxels.inverse], batch.labels)
    return confusion


def open_labelled(settings: config.WithData, split: str) -> Reader:
    """The reader of a split whose labels are needed; InputError if it has none."""
    reader = open_reader(settings.dataset, settings.root, split)
    if reader.read(0, images=False).labels is None:
        raise InputError(f"the split `{split}` of {settings.dataset} has no labels; choose another split.")
    return reader


def draw_predictions(run: Run, student: Student, reader: Reader, frames: int, device: torch.device) -> list[str]:
    """Bird's-eye pictures of prediction and ground truth for evenly spaced frames; their file names."""
    names = []
    student.eval()
    rows = np.unique(np.linspace(0, len(reader.ids) - 1, frames).astype(int)) if frames else []
    loader = make_loader(
        select(reader, list(rows)),
        batch=1,
        augment=None,
        superpixels=None,
        images=False,
        labels=True,
        workers=0,
        seed=0,
        shuffle=False,
    )
    for batch in loader if frames else ():
        with torch.no_grad():
            logits, voxels = student(batch.to(device))
        prediction = predict(logits)[voxels.inverse].cpu().numpy()
        name = f"birds_eye_{len(names)}.png"
        pictures.birds_eye(
            batch.points.numpy(),
            prediction,
            batch.labels.numpy(),
            reader.classes,
            COLOURS[reader.name],
            run.folder / name,
        )
        names.append(name)
    return names


def score_table(columns: dict[str, dict], classes: tuple[str, ...]) -> str:
    """A Markdown table: a row a class, a column a network; IoU in per cent, a dash where a class is absent.

    Args:
        columns: network name -> `ConfusionMatrix.scores()`.
        classes: class names, [0] ignored.
    """

    def cell(value: float) -> str:
        return "–" if math.isnan(value) else f"{100 * value:.1f}"

    lines = ["| class | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cell(s["iou"][i]) for s in columns.values()) + " |"
        for i, name in enumerate(classes)
        if i
    ]
    for name, label in (("miou", "**mIoU**"), ("code_compatible_miou", "mIoU as the published code counts")):
        lines.append(f"| {label} | " + " | ".join(cell(s[name]) for s in columns.values()) + " |")
    return "\n".join(lines)


def start(
    stage: str, settings: config.WithRun, readers: list[Reader], source: str, student: Student, device: torch.device
) -> Run:
    """Open the run's folder and print what was chosen."""
    log = Run(stage, settings)
    frames = " and ".join(
        f"{len(reader)} frames {what}"
        for reader, what in zip(readers[::-1], ("to evaluate on", "to train on"), strict=False)
    )
    log.start(
        data=f"{settings.dataset}: {frames}",
        weights=source,
        student=student.describe(),
        engine=backend.describe(device),
        arithmetic=f"{settings.precision} on {device}",
    )
    return log


def finish(
    log: Run, settings: config.WithRun, student: Student, source: str, reader: Reader, loader, device: torch.device
) -> dict:
    """Score the split, save the network, draw, report; `scores`, `classes` and `folder`."""
    scores = evaluate(student, loader, reader.classes, device).scores()
    save_student(log.folder / "model.pt", student, log.stage, reader.classes)
    drawn = draw_predictions(log, student, reader, settings.pictures, device)
    if log.rows:
        pictures.curves(log.rows, log.folder / "curves.png")
        drawn.insert(0, "curves.png")
    table = score_table({Path(source.split(" ")[0]).parent.name or source: scores}, reader.classes)
    log.finish(
        f"# {log.stage} {log.folder.name}\n\n"
        f"Weights: {source}. Split: {len(reader)} frames, all raw points.\n\n{table}\n\n"
        f"Again: `python run.py {log.stage} {log.folder / 'config.yaml'} --name NEW`\n\n"
        + "\n".join(f"![{name}]({name})" for name in drawn)
        + "\n"
    )
    print(f"\n{table}\n\n{log.stage}: mIoU {100 * scores['miou']:.1f} %; {log.folder / 'report.md'}")
    return {"scores": scores, "classes": reader.classes, "folder": log.folder}
