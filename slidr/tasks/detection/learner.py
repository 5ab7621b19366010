"""What is trained for detection: the whole network and a new head."""

from pathlib import Path

import torch

from data.files import InputError
from data.frame import Batch
from slidr.config import Detect
from slidr.networks.model_file import DetectorPart, Pretraining, TaskRecord, load_detector, read_model
from slidr.tasks.detection.targets import REGRESSION_WEIGHT, encode, focal_loss, regression_loss
from slidr.tasks.detection.task import Detection
from slidr.tasks.learner import TaskLearner
from slidr.training import Step


class DetectionLearner(TaskLearner):
    """CenterPoint's loss: focal loss of the heat maps + 0.25 x L1 of the numbers at the centres, all weighed alike.

    Both are divided by the boxes of the batch; of several processes each divides by its own, as in the published code.
    """

    best = ("val_mAP", "max")

    def __init__(self, settings: Detect, task: Detection, record: TaskRecord, pretraining: Pretraining | None = None):
        super().__init__(settings, task, record, pretraining)
        self.detector = task.detector

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch; boxes with fewer points than `min_points` are not asked for.

        Raises InputError if the batch has no boxes, not even none at all.
        """
        if batch.boxes is None:
            raise InputError(f"of the frames {', '.join(batch.ids)} some have no boxes; leave them out of the split.")
        heat, regression = self.detector(batch)
        seen = (batch.boxes.points >= self.settings.min_points).nonzero()[:, 0]
        targets = encode(batch.boxes.select(seen), batch.box_frame[seen], *heat.shape[:2], self.detector.spec)
        focal, l1 = focal_loss(heat.float(), targets), regression_loss(regression.float(), targets)
        return Step(focal + REGRESSION_WEIGHT * l1, {"heat": focal.detach(), "regression": l1.detach()})

    def parameter_groups(self) -> list[dict]:
        """The backbone at `lr`, the head at `lr_head`."""
        lr = self.settings.lr
        return [
            {"params": list(self.detector.student.parameters()), "lr": lr},
            {"params": list(self.detector.head.parameters()), "lr": self.settings.lr_head or lr},
        ]

    def task_of(self, path: Path, device: torch.device) -> Detection:
        """See `TaskLearner.task_of`."""
        return Detection(load_detector(read_model(path), path).to(device), self.task.reader)

    def heads(self) -> dict:
        """The head for boxes."""
        weights = {name: value.detach().cpu() for name, value in self.detector.head.state_dict().items()}
        return {"detector": DetectorPart(classes=self.detector.classes, spec=self.detector.spec, weights=weights)}
