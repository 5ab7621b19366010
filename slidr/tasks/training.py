"""What is trained for a task, and one training run of it, from its first line to its report."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from data.datasets.dataset import Reader
from data.loading import Loader
from slidr.config import Downstream
from slidr.networks.model_file import InputMeaning, Pretraining, TaskRecord, backbone_weights, write_model
from slidr.networks.student import Student
from slidr.report import counted
from slidr.tasks.results import finish
from slidr.tasks.scores import Outcome, Scores
from slidr.tasks.task import Task
from slidr.training import Learner, Run, arithmetic, fit
from triton_kernels import backend


class TrainedTask(Task, Protocol):
    """A Task whose network is trained for it."""

    student: Student  # the part of the network that was pretrained
    reader: Reader  # the split that is scored

    def describe(self) -> str:
        """The network in a few words."""
        ...


class TaskLearner(Learner):
    """A Learner of a task.

    Args:
        settings: of the stage.
        task: the network to train, and the split it is scored on.
        record: what it is trained for.
        pretraining: what it was pretrained on, as far as known; model.pt carries it on.
    """

    def __init__(
        self, settings: Downstream, task: TrainedTask, record: TaskRecord, pretraining: Pretraining | None = None
    ):
        super().__init__()
        self.settings, self.task, self.record, self.pretraining = settings, task, record, pretraining

    def heads(self) -> dict:
        """What model.pt holds beside the backbone, as parts of `slidr.networks.model_file.Model`."""
        raise NotImplementedError

    def write_model(self, path: Path) -> None:
        """Write model.pt: the backbone, the heads, what it was trained for and pretrained on."""
        student, reader = self.task.student, self.task.reader
        write_model(
            path,
            stage=self.record.stage,
            spec=student.spec,
            input=InputMeaning(intensity_scale=reader.intensity_scale, intensity_offset=reader.intensity_offset),
            backbone=backbone_weights(student),
            pretraining=self.pretraining,
            task=self.record,
            **self.heads(),
        )


def train(
    log: Run,
    settings: Downstream,
    learner: TaskLearner,
    loader_of: Callable[..., Loader],
    reader: Reader,
    source: str,
    device: torch.device,
) -> Outcome:
    """Train, validate, score at the end, report.

    Args:
        log: the run.
        learner: what is trained, on `device`; its task is what it is scored on.
        loader_of: makes the task's batches, called as (settings, device, reader, batch, train=, augment=).
        reader: the frames to train on.
        source: where the weights come from.
    """
    task = learner.task
    log.start(
        data=f"{settings.dataset}: {counted(len(reader), 'frame')} to train on and "
        f"{counted(len(task.reader), 'frame')} to evaluate on",
        weights=source,
        network=task.describe(),
        engine=backend.describe(device),
        arithmetic=arithmetic(settings, device),
    )
    loader = loader_of(settings, device, reader, settings.batch, train=True, augment=settings.augment)
    val_loader = loader_of(settings, device, task.reader, settings.batch, train=False)
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
