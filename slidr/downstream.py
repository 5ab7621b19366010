"""What linear probing, fine-tuning and evaluation share: the start, the score, the end of a run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.augment import AugmentSettings
from data.datasets import open_reader
from data.disk import InputError
from data.frame import Batch, Frame, Pairs, Reader, collate
from data.labels import COLOURS
from data.loading import Loader, make_loader
from slidr import config, pictures, published, report
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
from slidr.training import Run, arithmetic, distributed
from triton_kernels import backend


def pin_weights(settings: config.Downstream) -> tuple[config.Downstream, str]:
    """The settings with the start's weights named, so that the run can be repeated, and a sentence on where from.

    Raises InputError if none are named and there is no pretraining.
    """
    if settings.weights is not None:
        return settings, settings.weights
    path = newest_checkpoint(settings.output, "pretrain")
    if path is None:
        raise InputError(
            f"there is no pretraining under {settings.output / 'pretrain'}: run `python run.py pretrain` first, "
            "or pass --weights random or a model.pt."
        )
    return settings.model_copy(update={"weights": str(path)}), f"{path} (the newest pretraining)"


def starting_student(settings: config.Downstream, classes: int) -> Student:
    """The student to probe or fine-tune, with a new last layer.

    Raises InputError if the weights' architecture, input or voxels differ from the settings.
    """
    asked = {name: getattr(settings, name) for name in SPEC_KEYS if getattr(settings, name) is not None}
    if settings.weights == "random":
        recipe = config.load(config.Pretrain, ["--dataset", settings.dataset], "slidr")
        spec = StudentSpec(**({name: getattr(recipe, name) for name in SPEC_KEYS} | asked))
        return Student(spec, classes, settings.bn_momentum)
    path = Path(settings.weights)
    content = read_checkpoint(path)
    spec = StudentSpec(**{name: content["spec"][name] for name in SPEC_KEYS} | asked)
    student = Student(spec, classes, settings.bn_momentum)
    load_weights(student, content, path, with_head=False)
    return student


def segmentation_loader(
    settings: config.WithRun, device: torch.device, reader: Reader, batch: int, augment: bool, shuffle: bool
) -> Loader:
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
        max_bad_frames=settings.max_bad_frames if shuffle else 0.0,
        pin=device.type == "cuda",
        rank=distributed.rank(),
        world=distributed.world(),
    )


def has_labels(reader: Reader) -> bool:
    """Whether the split comes with labels, by the first frame that reads. Raises InputError if ten in a row do not."""
    for index in range(len(reader)):
        try:
            return reader.read(index, images=False).labels is not None
        except InputError:  # one bad frame is for `max_bad_frames` to judge
            if index + 1 == min(10, len(reader)):
                raise
    return False


def open_labelled(settings: config.WithData, split: str) -> Reader:
    """The reader of a split whose labels are needed; InputError if it has none."""
    with distributed.first_goes_first():
        reader = open_reader(settings.dataset, settings.root, split)
    if not has_labels(reader):
        raise InputError(f"the split `{split}` of {settings.dataset} has no labels; choose another split.")
    return reader


@torch.no_grad()
def infer(
    student: Student, loader: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
    """(batch, logits `[V, K]` of its voxels, voxel `[N]` of each raw point), in eval mode."""
    student.eval()
    for batch in loader:
        batch = batch.to(device)
        logits, voxels = student(batch)
        yield batch, logits, voxels.inverse


def count(
    student: Student,
    loader: Iterable[Batch],
    classes: int,
    device: torch.device,
    keep: Callable[[str, np.ndarray], None] | None = None,
) -> tuple[ConfusionMatrix, ConfusionMatrix]:
    """Confusion over all raw points of the split: each point gets its voxel's prediction (paper, section 4.1).

    Args:
        classes: number of classes, the ignored one included.
        keep: called with each frame's id and its points' predicted train ids `[N]`.

    Returns two: class 0 is never predicted in the first; it may be in the second, as in the published evaluation.
    Both stay empty where there are no labels.
    """
    masked, unmasked = ConfusionMatrix(classes), ConfusionMatrix(classes)
    for batch, logits, inverse in infer(student, loader, device):
        prediction = predict(logits)[inverse]
        if batch.labels is not None:
            masked.update(prediction, batch.labels)
            unmasked.update(logits.argmax(1)[inverse], batch.labels)
        if keep:
            for i, name in enumerate(batch.ids):
                keep(name, prediction[batch.batch_index == i].cpu().numpy())
    for matrix in (masked, unmasked):
        matrix.counts = distributed.total(matrix.counts)
    return masked, unmasked


def scores_of(masked: ConfusionMatrix, unmasked: ConfusionMatrix) -> dict:
    """Everything worth keeping of the two matrices of `count`: `ConfusionMatrix.scores()`, the published code's mIoU
    (`code_compatible_miou`) and the counts `[label, prediction]` (`confusion`)."""
    return masked.scores() | {
        "code_compatible_miou": unmasked.code_compatible_miou(),
        "confusion": masked.counts.tolist(),
    }


def draw_predictions(run: Run, student: Student, reader: Reader, frames: int, device: torch.device) -> list[str]:
    """Prediction and ground truth of evenly spaced frames, from above and in the first camera; their file names."""
    names = []
    rows = np.unique(np.linspace(0, len(reader) - 1, frames).astype(int)) if frames else []
    for n, row in enumerate(rows):
        frame = _with_images_if_there(reader, int(row))
        bare = collate([replace(frame, cameras=[], pairs=Pairs.empty())], reader.intensity_offset)
        ((_, logits, inverse),) = infer(student, [bare], device)
        prediction = predict(logits)[inverse].cpu().numpy()
        scene = (frame, prediction, reader.classes, COLOURS[reader.name])
        pictures.birds_eye(*scene, run.folder / f"birds_eye_{n}.png")
        names.append(f"birds_eye_{n}.png")
        if frame.cameras:
            pictures.camera_classes(*scene, run.folder / f"camera_{n}.png")
            names.append(f"camera_{n}.png")
    return names


def _with_images_if_there(reader: Reader, row: int) -> Frame:
    """Labels suffice downstream, so a data set without its images is no error here."""
    try:
        return reader.read(row)
    except InputError as error:
        print(f"no camera view of {reader.ids[row]}: {error}")
        return reader.read(row, images=False)


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
        arithmetic=arithmetic(settings, device),
    )
    return log


def finish(
    log: Run,
    settings: config.Downstream | config.Evaluate,
    student: Student,
    task: dict | None,
    source: str,
    reader: Reader,
    scores: dict | None,
    device: torch.device,
) -> dict:
    """Save the network, draw, report (the first process alone); `scores`, `classes` and `folder`.

    Args:
        task: what the network was trained for: stage, data set and per cent of the labels, which decide the published
            rows; None = not known.
        source: where its weights come from.
        reader: the split that was scored.
        scores: of `scores_of`; None if the split has no labels.
    """
    result = {"scores": scores, "classes": reader.classes, "folder": log.folder}
    if not log.first:
        return result
    save_student(log.folder / "model.pt", student, log.stage, reader.classes, task)
    drawn = draw_predictions(log, student, reader, settings.pictures, device)
    if log.rows:
        pictures.curves(log.rows, log.folder / "curves.png")
        drawn.insert(0, "curves.png")
    text = "The split has no labels, hence no scores."
    if scores:
        report.save_scores(log.folder / "scores.json", scores)
        text = report_scores(
            log.folder, Path(source.split(" ")[0]).parent.name or source, scores, reader, task, settings
        )
        drawn.insert(0, "classes.png")
    log.finish(
        f"# {log.stage} {log.folder.name}\n\n"
        f"Weights: {source}. Split: {settings.scored}, {len(reader)} frames, all raw points.\n\n{text}\n\n"
        f"Again: `python run.py {log.stage} {log.folder / 'config.yaml'} --name NEW`\n\n"
        + "\n".join(f"![{name}]({name})" for name in drawn)
        + "\n"
    )
    headline = f"mIoU {100 * scores['miou']:.1f} %; " if scores else ""
    print(f"\n{text}\n\n{log.stage}: {headline}{log.folder / 'report.md'}")
    return result


def report_scores(
    folder: Path,
    name: str,
    scores: dict,
    reader: Reader,
    task: dict | None,
    settings: config.Downstream | config.Evaluate,
) -> str:
    """Write scores.csv and classes.png with the published rows of the same task beside ours; the Markdown table."""
    beside = {}
    if task and settings.compare and settings.scored == "val":  # the published figures are of no other split
        beside = published.columns(**task, classes=len(reader.classes))
    columns = {f"ours: {name}" if beside else name: scores} | beside
    report.write_csv(columns, reader.classes, folder / "scores.csv")
    pictures.bar_chart(columns, reader.classes, folder / "classes.png")
    table = report.score_table(columns, reader.classes)
    if beside:
        return f"{table}\n\nBeside ours: {published.SOURCE}, {task['pct']:g} % of {task['dataset']}'s labels."
    return table
