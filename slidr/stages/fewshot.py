"""Few-shot segmentation: fine-tune the whole network on a small share of the labels (paper, section 4.3)."""

from pathlib import Path

import torch

from data.disk import InputError, atomic_write
from data.frame import Batch
from data.subsets import choose_subset, write_subset
from slidr import pictures, report
from slidr.config import Fewshot
from slidr.downstream import (
    count,
    finish,
    open_labelled,
    pin_weights,
    scores_of,
    segmentation_loader,
    start,
    starting_student,
)
from slidr.published import EFFICIENCY
from slidr.repeats import repeat, run_seeds
from slidr.segmentation import segmentation_loss
from slidr.student import SPEC_KEYS, Student, StudentSpec, read_checkpoint
from slidr.training import fit, prepare, sgd


def published(settings: Fewshot) -> Fewshot:
    """The settings with the published schedule and learning rates where none are given (supplement, section B)."""
    random = settings.weights == "random"
    lr = settings.lr or (0.05 if random or settings.dataset == "kitti" else 0.02)
    return settings.model_copy(
        update={
            "subset": settings.subset or ("frames" if settings.dataset == "kitti" else "scenes"),
            "epochs": settings.epochs or (100 if settings.dataset == "kitti" or settings.pct == 1 else 50),
            "lr": lr,
            "lr_head": settings.lr_head or (lr if random else 2.0),
        }
    )


def parameter_groups(student: Student, settings: Fewshot) -> list[dict]:
    """The backbone and the last layer, each at its rate."""
    head = list(student.network.final.parameters())
    rest = [p for p in student.parameters() if all(p is not h for h in head)]
    return [{"params": rest, "lr": settings.lr}, {"params": head, "lr": settings.lr_head}]


def run(settings: Fewshot) -> dict:
    """Fine-tune by the settings; `scores` (see downstream.scores_of; of several seeds their mean) and `folder`."""
    readers = [open_labelled(settings, split) for split in (settings.train_split, settings.val_split)]
    if settings.sweep:
        return sweep(settings)
    settings, source = pin_weights(settings)
    settings = published(settings)
    task = {"stage": "fewshot", "dataset": settings.dataset, "pct": settings.pct}
    if settings.seeds > 1:
        return repeat("fewshot", run, settings, task, readers[1])
    device = prepare(settings)
    readers[0] = choose_subset(readers[0], settings.pct, settings.subset, settings.subset_seed)
    classes = len(readers[0].classes)
    loader = segmentation_loader(settings, device, readers[0], settings.batch, settings.augment, shuffle=True)
    val_loader = segmentation_loader(settings, device, readers[1], settings.batch, augment=False, shuffle=False)

    student = starting_student(settings, classes)
    student.to(device)
    log = start("fewshot", settings, readers, source, student, device)
    remark = f"the list {settings.subset}"
    if settings.subset in ("scenes", "frames"):
        which = "every n-th" if settings.subset_seed is None else f"drawn by seed {settings.subset_seed}"
        remark = f"{settings.pct:g} % of the {settings.subset}, {which}"
    if log.first:
        write_subset(
            log.folder / "subset.txt", readers[0], f"{settings.dataset}, split {settings.train_split}: {remark}"
        )

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        logits, voxels = student(batch)
        return segmentation_loss(logits, batch.labels[voxels.first]), {}

    def score() -> dict:
        return scores_of(*count(student, val_loader, classes, device))

    optimizer = sgd(settings, parameter_groups(student, settings))
    fit(log, settings, loader, optimizer, loss_of, student, lambda _: {"val_miou": score()["miou"]})
    return finish(log, settings, student, task, source, readers[1], score(), device)


def sweep(settings: Fewshot) -> dict:
    """Annotation efficiency: fine-tune on every share of `settings.sweep`, pretrained and from random.

    Runs are called `<name>-<start>-<pct>pct-seed<seed>`; the same command goes on where it was cut off.

    Returns `folder`, which holds the table and the plot, and `scores`: start -> per cent -> scores.
    """
    if settings.subset not in (None, "scenes", "frames"):
        raise InputError("`sweep` takes shares of the scenes or frames; drop the list given as `subset`.")
    starts = {"random": "random"}
    if settings.weights != "random":
        weights = pin_weights(settings)[0].weights
        starts = {"pretrained": weights} | starts
        spec = StudentSpec(**read_checkpoint(Path(weights))["spec"])  # a random network of the same shape
        same = {name: getattr(spec, name) for name in SPEC_KEYS if getattr(settings, name) is None}
        settings = settings.model_copy(update=same)
    name = settings.name or f"{settings.dataset}-sweep"
    folder, scores = settings.output / "fewshot" / name, {label: {} for label in starts}
    for pct in settings.sweep:
        for label, weights in starts.items():
            point = settings.model_copy(update={"sweep": None, "pct": pct, "weights": weights})
            runs = run_seeds("fewshot", run, published(point), f"{name}-{label}-{pct:g}pct")
            scores[label][pct] = report.mean_scores(runs)
    lines = {
        label: {pct: (s["miou"], s.get("std", {}).get("miou", report.NAN)) for pct, s in points.items()}
        for label, points in scores.items()
    }
    if settings.compare and settings.dataset == "nuscenes" and settings.val_split == "val":
        for method, curve in EFFICIENCY.items():
            lines[f"published: {method}"] = {pct: (miou / 100, report.NAN) for pct, miou in curve.items()}
    pictures.sweep(lines, folder / "sweep.png")
    report.write_sweep_csv(lines, folder / "sweep.csv")
    table = report.sweep_table(lines, settings.sweep)
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(f"# Annotation efficiency {name}, mIoU\n\n{table}\n\n![mIoU over labels](sweep.png)\n")
    print(f"\n{table}\n\nfewshot: {folder / 'report.md'}")
    return {"scores": scores, "folder": folder}
