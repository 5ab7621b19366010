"""One training run of segmentation, from its first line to its report."""

import torch

from data.datasets.dataset import Reader
from slidr.config import Downstream
from slidr.report import counted
from slidr.tasks.results import finish
from slidr.tasks.scores import Outcome, Scores
from slidr.tasks.segmentation.learners import SegmentationLearner
from slidr.tasks.segmentation.task import segmentation_loader
from slidr.training import Run, arithmetic, fit
from triton_kernels import backend


def train(
    log: Run, settings: Downstream, learner: SegmentationLearner, reader: Reader, source: str, device: torch.device
) -> Outcome:
    """Train, validate, score at the end, report.

    Args:
        log: the run.
        learner: what is trained, on `device`; its task is what it is scored on.
        reader: the frames to train on.
        source: where the weights come from.
    """
    task = learner.task
    log.start(
        data=f"{settings.dataset}: {counted(len(reader), 'frame')} to train on and "
        f"{counted(len(task.reader), 'frame')} to evaluate on",
        weights=source,
        student=task.student.describe(),
        engine=backend.describe(device),
        arithmetic=arithmetic(settings, device),
    )
    loader = segmentation_loader(settings, device, reader, settings.batch, train=True, augment=settings.augment)
    val_loader = segmentation_loader(settings, device, task.reader, settings.batch, train=False)
    found: dict[int, Scores] = {}

    def validate(epoch: int) -> dict[str, float]:
        found[epoch] = task.evaluate(val_loader)
        return found[epoch].row()

    fit(log, settings, learner, loader, validate)
    # a run that was cut off after its last validation has none
    scores = found[settings.epochs] if settings.epochs in found else task.evaluate(val_loader)
    if log.first:
        learner.write_model(log.folder / "model.pt")
    return finish(log, settings, task, task.reader, scores, settings.weights, log.folder / "model.pt")
