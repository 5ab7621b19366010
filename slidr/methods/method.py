"""The contract of a pretraining method: what makes one pretraining different from another."""

from pathlib import Path

import torch

from data.datasets.dataset import DataSet, Reader
from data.frame import Needs
from data.samples import Sample
from slidr.config import MethodSettings
from slidr.networks.model_file import InputMeaning, Pretraining, backbone_weights, head_layers, write_model
from slidr.networks.student import Student, StudentSpec
from slidr.training.learner import Learner


class Method(Learner):
    """One pretraining: its settings, what it reads, how an item is drawn, its step, and what it leaves behind.

    A subclass sets `Settings` (with its own keys) and `needs`, builds all of its networks in __init__, and writes
    `sample` and `forward`. The optimiser, the schedule, precision, processes and checkpoints are the loop's.

    Args:
        settings: of the class's own `Settings`.
        dataset: what is trained on.

    Attributes:
        student: the lidar network that goes into model.pt.
    """

    Settings: type[MethodSettings] = MethodSettings
    needs = Needs()
    best = ("val_loss", "min")
    student: Student

    def __init__(self, settings: MethodSettings, dataset: DataSet):
        super().__init__()
        self.settings, self.dataset = settings, dataset

    def make_student(self, out_channels: int | None, normalize: bool = False) -> Student:
        """The lidar network of the settings with a linear head of `out_channels`, or without one."""
        s = self.settings
        spec = StudentSpec(**{name: getattr(s, name) for name in StudentSpec.model_fields})
        return Student(spec, out_channels, s.bn_momentum, normalize, s.bn_momentum_blocks)

    def sample(self, reader: Reader, train: bool) -> Sample:
        """How one item of training, or of validation, is drawn and collated."""
        raise NotImplementedError

    def describe(self) -> dict[str, str]:
        """What was chosen, line by line, for the block at the start of a run."""
        return {"student": self.student.describe()}

    def write_model(self, path: Path) -> None:
        """Write model.pt: the student's backbone, the heads, and what it was pretrained on."""
        write_model(
            path,
            stage="pretrain",
            spec=self.student.spec,
            backbone=backbone_weights(self.student),
            input=InputMeaning(
                intensity_scale=self.settings.intensity_scale, intensity_offset=self.dataset.intensity_offset
            ),
            pretraining=Pretraining(method=self.settings.method, dataset=self.dataset.name),
            **self.model_parts(),
        )

    def model_parts(self) -> dict:
        """What model.pt keeps beside the backbone (`slidr.networks.model_file.Model`)."""
        return {"point_head": head_layers(self.student)}

    @torch.no_grad()
    def watch(self, reader: Reader, folder: Path, suffix: str = "") -> list[str]:
        """Draw what a person wants to see of a validation split; the names of the pictures in `folder`.

        Args:
            reader: of the split.
            folder: where to.
            suffix: of the pictures' names, before the ending.
        """
        return []
