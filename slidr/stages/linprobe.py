"""Linear probing: how much a frozen lidar network already knows of the classes (paper, section 4.2)."""

import torch

from data.disk import InputError
from data.frame import Batch
from slidr.config import Linprobe
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
from slidr.repeats import repeat
from slidr.segmentation import segmentation_loss
from slidr.student import Student
from slidr.training import fit, prepare, sgd


def parameter_groups(student: Student, settings: Linprobe) -> list[dict]:
    """What is trained, the last layer only, and at which rate."""
    return [{"params": list(student.network.final.parameters()), "lr": settings.lr}]


@torch.no_grad()
def frozen_features(student: Student, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features `[V, C]`, labels `[V]` and frame `[V]` of the batch's voxels: a voxel's label is its first point's."""
    x, voxels = student.backbone(batch)
    return x.features, batch.labels[voxels.first], x.coordinates[:, 0]


def head_logits(student: Student, features: torch.Tensor) -> torch.Tensor:
    """The last layer alone: `[V, C]` -> `[V, K]`."""
    head = student.network.final
    return features @ head.weight[0] + head.bias


def run(settings: Linprobe) -> dict:
    """Probe by the settings; `scores` (see downstream.scores_of; of several seeds their mean) and `folder`."""
    if settings.remember and settings.augment:
        raise InputError("`remember` cannot be true while `augment` is: augmented features differ every epoch.")
    readers = [open_labelled(settings, split) for split in (settings.train_split, settings.val_split)]
    settings, source = pin_weights(settings)
    task = {"stage": "linprobe", "dataset": settings.dataset, "pct": 100.0}
    if settings.seeds > 1:
        return repeat("linprobe", run, settings, task, readers[1])
    device = prepare(settings)
    classes = len(readers[0].classes)
    loader = segmentation_loader(settings, device, readers[0], settings.batch, settings.augment, shuffle=True)
    val_loader = segmentation_loader(settings, device, readers[1], settings.batch, augment=False, shuffle=False)

    student = starting_student(settings, classes)
    student.to(device).eval()  # the whole network, batch norm included, stays in eval mode
    log = start("linprobe", settings, readers, source, student, device)
    remembered: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # frame id -> features and labels of its voxels

    def features_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if not settings.remember:
            return frozen_features(student, batch)[:2]
        if any(name not in remembered for name in batch.ids):
            features, labels, item = frozen_features(student, batch)
            for i, name in enumerate(batch.ids):
                remembered[name] = features[item == i], labels[item == i]
        parts = [remembered[name] for name in batch.ids]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        features, labels = features_of(batch)
        return segmentation_loss(head_logits(student, features), labels), {}

    def score() -> dict:
        return scores_of(*count(student, val_loader, classes, device))

    optimizer = sgd(settings, parameter_groups(student, settings))
    head = student.network.final
    fit(log, settings, loader, optimizer, loss_of, head, lambda _: {"val_miou": score()["miou"]})
    return finish(log, settings, student, task, source, readers[1], score(), device)
