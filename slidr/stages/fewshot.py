"""Few-shot segmentation: fine-tune the whole network on a small share of the labels (paper, section 4.3)."""

import torch

from data.frame import Batch
from slidr.config import Fewshot
from slidr.downstream import (
    choose_subset,
    evaluate,
    finish,
    open_labelled,
    segmentation_loader,
    start,
    starting_student,
)
from slidr.segmentation import segmentation_loss
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


def run(settings: Fewshot) -> dict:
    """Fine-tune by the settings; `scores` (see ConfusionMatrix) and `folder` of the run."""
    settings = published(settings)
    device = prepare(settings)
    readers = [open_labelled(settings, split) for split in (settings.train_split, settings.val_split)]
    readers[0] = choose_subset(readers[0], settings.pct, settings.subset)
    classes = readers[0].classes
    loader = segmentation_loader(settings, readers[0], settings.batch, settings.augment, shuffle=True)
    val_loader = segmentation_loader(settings, readers[1], settings.batch, augment=False, shuffle=False)

    student, source = starting_student(settings, len(classes))
    student.to(device)
    log = start("fewshot", settings, readers, source, student, device)
    with (log.folder / "frames.txt").open("w") as file:
        file.writelines(f"{name}\n" for name in readers[0].ids)

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        logits, voxels = student(batch)
        return segmentation_loss(logits, batch.labels[voxels.first]), {}

    def validate() -> dict[str, float]:
        return {"val_miou": evaluate(student, val_loader, classes, device).scores()["miou"]}

    head = list(student.network.final.parameters())
    rest = [p for p in student.parameters() if all(p is not h for h in head)]
    optimizer = sgd(settings, [{"params": rest, "lr": settings.lr}, {"params": head, "lr": settings.lr_head}])
    fit(log, settings, loader, optimizer, loss_of, student, validate)
    return finish(log, settings, student, source, readers[1], val_loader, device)
