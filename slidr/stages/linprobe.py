"""Linear probing: how much a frozen lidar network already knows of the classes (paper, section 4.2)."""

import torch
from torch import nn

from data.disk import InputError
from data.frame import Batch
from slidr.config import Linprobe
from slidr.downstream import evaluate, finish, open_labelled, segmentation_loader, start, starting_student
from slidr.segmentation import segmentation_loss
from slidr.training import fit, prepare, sgd


def run(settings: Linprobe) -> dict:
    """Probe by the settings; `scores` (see ConfusionMatrix) and `folder` of the run."""
    if settings.remember and settings.augment:
        raise InputError("`remember` cannot be true while `augment` is: augmented features differ every epoch.")
    device = prepare(settings)
    readers = [open_labelled(settings, split) for split in (settings.train_split, settings.val_split)]
    classes = readers[0].classes
    loader = segmentation_loader(settings, readers[0], settings.batch, settings.augment, shuffle=True)
    val_loader = segmentation_loader(settings, readers[1], settings.batch, augment=False, shuffle=False)

    student, source = starting_student(settings, len(classes))
    student.to(device).eval()  # the whole network, batch norm included, stays in eval mode
    log = start("linprobe", settings, readers, source, student, device)

    @torch.no_grad()
    def frozen(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and labels of the batch's voxels: a voxel's label is that of its first point."""
        x, voxels = student.backbone(batch)
        return x.features, batch.labels[voxels.first], x.coordinates[:, 0]

    remembered: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def frozen_or_remembered(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if not settings.remember:
            return frozen(batch)[:2]
        if any(name not in remembered for name in batch.ids):
            features, labels, item = frozen(batch)
            for i, name in enumerate(batch.ids):
                remembered[name] = features[item == i], labels[item == i]
        parts = [remembered[name] for name in batch.ids]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    head: nn.Module = student.network.final

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        features, labels = frozen_or_remembered(batch)
        return segmentation_loss(features @ head.weight[0] + head.bias, labels), {}

    def validate() -> dict[str, float]:
        return {"val_miou": evaluate(student, val_loader, classes, device).scores()["miou"]}

    optimizer = sgd(settings, [{"params": list(head.parameters()), "lr": settings.lr}])
    fit(log, settings, loader, optimizer, loss_of, None, validate)
    return finish(log, settings, student, source, readers[1], val_loader, device)
