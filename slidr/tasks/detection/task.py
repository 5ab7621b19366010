"""Detection as a task: what it reads, how a detector is scored, and what its boxes look like."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from data.augment import AugmentSettings
from data.boxes import Detections
from data.datasets.dataset import Reader
from data.files import InputError
from data.frame import Batch, Needs, Pairs
from data.loading import Loader
from data.progress import Progress
from data.samples.single import Single
from data.subsets import select
from slidr import box_pictures, config
from slidr.networks.detector import Detector
from slidr.tasks.detection.metrics import metric_of
from slidr.tasks.scores import Scores
from slidr.tasks.task import first_that_reads, open_annotated, read_with_image
from slidr.training import distributed, open_loader

NEEDS = Needs(boxes=True)


class Detection:
    """A detector on a split (the contract: `slidr.tasks.learner.TrainedTask`).

    Args:
        detector: the network, on its device; its classes are the data set's.
        reader: the split to score and to draw.
    """

    needs = NEEDS

    def __init__(self, detector: Detector, reader: Reader):
        self.detector, self.student, self.reader = detector, detector.student, reader

    def describe(self) -> str:
        """The network in a few words."""
        return self.detector.describe()

    def evaluate(self, loader: Iterable[Batch], keep: Callable[[str, Detections], None] | None = None) -> Scores:
        """Average precisions by the data set's own metric (`slidr.tasks.detection.metrics`); nan without boxes.

        Args:
            loader: batches of the split, or of this process's share of it.
            keep: called with each frame's id and what is found in it.
        """
        device = next(self.detector.parameters()).device
        metric = metric_of(self.reader)
        for batch in Progress(loader, desc="scoring", leave=False, delay=10, disable=distributed.rank() > 0):
            batch = batch.to(device)
            for i, (name, found) in enumerate(zip(batch.ids, self.detector.detect(batch), strict=True)):
                if batch.boxes is not None:
                    metric.add(name, found, *batch.truth(i))
                if keep:
                    keep(name, found)
        metric.merge(distributed.objects(metric))
        return metric.scores()

    def draw(self, index: int, folder: Path, name: str) -> list[str]:
        """Boxes found and true boxes of a frame, from above and in the first camera if there is one."""
        frame = read_with_image(self.reader, index, self.needs)
        bare = Single(self.reader, self.needs).collate([replace(frame, cameras=[], pairs=Pairs.empty())])
        (found,) = self.detector.detect(bare.to(next(self.detector.parameters()).device))
        dataset = self.reader.dataset
        panels = {"found": (found.boxes, found.score)}
        if frame.boxes is not None:
            panels["ground truth"] = frame.boxes, None
        scene = frame, panels, dataset.boxes, dataset.box_colours, f"frame {frame.id}"
        names = [f"birds_eye_{name}.png"]
        box_pictures.birds_eye(*scene, folder / names[0])
        if frame.cameras:
            names.append(f"camera_{name}.png")
            box_pictures.camera(*scene, folder / names[1])
        return names


def with_boxes(reader: Reader) -> Reader:
    """The reader, or no frame of it if the data set has no boxes for this split, by the first frame that reads.

    Raises InputError if the data set has no boxes at all, or if ten frames in a row cannot be read.
    """
    if not reader.dataset.boxes:
        raise InputError(f"{reader.dataset.name} has no boxes around objects; choose another --dataset for detection.")
    frame = first_that_reads(reader, NEEDS)
    return reader if frame is None or frame.boxes is not None else select(reader, [])


def open_with_boxes(settings: config.WithData, split: str) -> Reader:
    """The frames of a split with boxes; InputError if it has none."""
    return open_annotated(settings, split, with_boxes, "boxes")


def detection_loader(
    settings: config.WithRun, device: torch.device, reader: Reader, batch: int, *, train: bool, augment: bool = False
) -> Loader:
    """Batches of points and boxes, without images; `augment` rotates and flips both as the settings say."""
    drawn = None
    if augment:
        angle = math.radians(settings.rotation)
        drawn = AugmentSettings(crop=None, cuboid=0.0, rotation=(-angle, angle), flip_x=settings.flip_x)
    return open_loader(Single(reader, NEEDS, drawn), settings, device, batch, train=train)
