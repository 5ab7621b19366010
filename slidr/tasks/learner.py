"""What is trained for a task."""

from pathlib import Path
from typing import Protocol

import torch

from data.datasets.dataset import Reader
from slidr.config import Downstream
from slidr.networks.model_file import InputMeaning, Pretraining, TaskRecord, backbone_weights, write_model
from slidr.networks.student import Student
from slidr.tasks.task import Task
from slidr.training import Learner


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

    def task_of(self, path: Path, device: torch.device) -> TrainedTask:
        """The task with the network of a model.pt that this learner wrote, on `device`."""
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
