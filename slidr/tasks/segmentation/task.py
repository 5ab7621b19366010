"""Segmentation as a task: what it reads, how a network is scored, and what its predictions look like."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.augment import AugmentSettings
from data.datasets.dataset import Reader
from data.frame import Batch, Needs, Pairs
from data.loading import Loader
from data.progress import Progress
from data.samples.single import Single
from data.subsets import labelled, select
from slidr import config, pictures
from slidr.networks.student import Student, of_points
from slidr.tasks.scores import Scores
from slidr.tasks.segmentation.metrics import ConfusionMatrix, predict, segmentation_scores
from slidr.tasks.task import first_that_reads, open_annotated, read_with_image
from slidr.training import distributed, open_loader

NEEDS = Needs(labels=True)


class Segmentation:
    """A network that gives classes, on a split (the contract: `slidr.tasks.task.Task`).

    Args:
        student: the network, on its device.
        reader: the split to score and to draw.
        head: from the backbone's features `[V, C]` to logits `[V, K]`; None = the student's last layer.
    """

    needs = NEEDS

    def __init__(self, student: Student, reader: Reader, head: Callable[[torch.Tensor], torch.Tensor] | None = None):
        self.student, self.reader, self.head = student, reader, head

    def describe(self) -> str:
        """The network in a few words."""
        return self.student.describe()

    @torch.no_grad()
    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[V, K]` of the batch's voxels and the voxel `[N]` of each point; leaves the network in eval mode."""
        student = self.student.eval()
        if self.head is None:
            logits, voxels = student(batch)
            return logits, voxels.inverse
        x, voxels = student.backbone(batch)
        return self.head(x.features), voxels.inverse

    def evaluate(self, loader: Iterable[Batch], keep: Callable[[str, np.ndarray], None] | None = None) -> Scores:
        """IoU over all raw points: each gets its voxel's prediction (paper, section 4.1). nan without labels.

        A point without a voxel is predicted as 0, which is wrong where it has a label.

        Args:
            loader: batches of the split, or of this process's share of it.
            keep: called with each frame's id and its points' predicted train ids `[N]`.
        """
        classes = self.reader.dataset.classes
        device = next(self.student.parameters()).device
        masked, unmasked = ConfusionMatrix(len(classes)), ConfusionMatrix(len(classes))
        for batch in Progress(loader, desc="scoring", leave=False, delay=10, disable=distributed.rank() > 0):
            batch = batch.to(device)
            logits, inverse = self.logits(batch)
            prediction = of_points(predict(logits), inverse, 0)
            if batch.labels is not None:
                masked.update(prediction, batch.labels)
                unmasked.update(of_points(logits.argmax(1), inverse, 0), batch.labels)
            if keep:
                for i, name in enumerate(batch.ids):
                    keep(name, prediction[batch.batch_index == i].cpu().numpy())
        for matrix in (masked, unmasked):
            matrix.counts = distributed.total(matrix.counts)
        return segmentation_scores(masked, unmasked, classes)

    def draw(self, index: int, folder: Path, name: str) -> list[str]:
        """Prediction and ground truth of a frame, from above and in the first camera if there is one."""
        frame = read_with_image(self.reader, index, self.needs)
        bare = Single(self.reader, self.needs).collate([replace(frame, cameras=[], pairs=Pairs.empty())])
        logits, inverse = self.logits(bare.to(next(self.student.parameters()).device))
        dataset, prediction = self.reader.dataset, of_points(predict(logits), inverse, 0).cpu()
        title = f"frame {frame.id}"
        if frame.labels is not None and frame.labels.any():
            matrix = ConfusionMatrix(len(dataset.classes))
            matrix.update(prediction, torch.from_numpy(frame.labels))
            title += f": mIoU {matrix.mean_iou():.1f} %"
        scene = frame, prediction.numpy(), dataset.classes, dataset.colours, title
        names = [f"birds_eye_{name}.png"]
        pictures.birds_eye(*scene, folder / names[0])
        if frame.cameras:
            names.append(f"camera_{name}.png")
            pictures.camera_classes(*scene, folder / names[1])
        return names


def with_labels(reader: Reader) -> Reader:
    """The frames that have labels, none if no frame has; says how many have none.

    Raises InputError if ten frames in a row cannot be read.
    """
    rows = np.flatnonzero(labelled(reader))
    if 0 < len(rows) < len(reader) and distributed.rank() == 0:
        without = len(reader) - len(rows)
        print(f"{without} of {len(reader)} frames have no labels: no training, no scores on them.", file=sys.stderr)
    reader = select(reader, rows) if len(rows) < len(reader) else reader
    frame = first_that_reads(reader, NEEDS)
    return reader if frame is None or frame.labels is not None else select(reader, [])


def open_labelled(settings: config.WithData, split: str) -> Reader:
    """The frames of a split that have labels; InputError if none has."""
    return open_annotated(settings, split, with_labels, "labels")


def segmentation_loader(
    settings: config.WithRun, device: torch.device, reader: Reader, batch: int, *, train: bool, augment: bool = False
) -> Loader:
    """Batches of points and labels, without images; `augment` rotates and flips the cloud (supplement, section B)."""
    sample = Single(reader, NEEDS, AugmentSettings(crop=None, cuboid=0.0) if augment else None)
    return open_loader(sample, settings, device, batch, train=train)
