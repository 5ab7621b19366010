"""What is trained for segmentation: one linear layer on a frozen network, or the whole network."""

import hashlib

import torch

from data.frame import Batch
from slidr.config import Fewshot, Linprobe
from slidr.networks.model_file import Pretraining, TaskRecord, backbone_weights, head_layers
from slidr.tasks.learner import TaskLearner
from slidr.tasks.segmentation.losses import segmentation_loss
from slidr.tasks.segmentation.task import Segmentation
from slidr.training import Step


class SegmentationLearner(TaskLearner):
    """Cross-entropy + Lovász-softmax over the voxels with a label; a voxel's label is its first point's."""

    best = ("val_mIoU", "max")
    task: Segmentation

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[V, K]` and labels `[V]` of the batch's voxels."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch (paper, section 4.2)."""
        return Step(segmentation_loss(*self.logits(batch)))

    def heads(self) -> dict:
        """The class head and its classes."""
        return {"class_head": head_layers(self.task.student), "classes": self.task.reader.dataset.classes}


class LinearProbe(SegmentationLearner):
    """One linear layer learns classes from frozen features, batch norm included in eval mode (paper, section 4.2).

    The network is held by the task alone, outside state_dict, DDP and the optimiser; `head` is its last layer.
    """

    def __init__(
        self, settings: Linprobe, task: Segmentation, record: TaskRecord, pretraining: Pretraining | None = None
    ):
        super().__init__(settings, task, record, pretraining)
        task.student.requires_grad_(False).eval()
        self.head = task.student.network.final.requires_grad_(True)
        self._cache: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # frame id -> features and labels of its voxels

    @torch.no_grad()
    def features(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Frozen features `[V, C]` and labels `[V]` of the batch's voxels."""
        if self._cache.keys() >= set(batch.ids):
            parts = [self._cache[name] for name in batch.ids]
            return torch.cat([features for features, _ in parts]), torch.cat([labels for _, labels in parts])
        x, voxels = self.task.student.backbone(batch)
        features, labels, frame = x.features, batch.labels[voxels.first], x.coordinates[:, 0]
        if self.settings.cache_features:
            self._cache |= {name: (features[frame == i], labels[frame == i]) for i, name in enumerate(batch.ids)}
        return features, labels

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer on frozen features."""
        features, labels = self.features(batch)
        return features @ self.head.weight[0] + self.head.bias, labels

    def identity(self) -> dict:
        """Which frozen network."""
        digest = hashlib.sha256()
        for value in backbone_weights(self.task.student).values():
            digest.update(value.contiguous().numpy().tobytes())
        return {"weights": digest.hexdigest()}


class FineTuning(SegmentationLearner):
    """The whole network learns, its new last layer at a rate of its own (paper, section 4.3)."""

    def __init__(
        self, settings: Fewshot, task: Segmentation, record: TaskRecord, pretraining: Pretraining | None = None
    ):
        super().__init__(settings, task, record, pretraining)
        self.student = task.student

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's output."""
        logits, voxels = self.student(batch)
        return logits, batch.labels[voxels.first]

    def parameter_groups(self) -> list[dict]:
        """The backbone at `lr`, the last layer at `lr_head`."""
        head = list(self.student.network.final.parameters())
        rest = [p for p in self.student.parameters() if all(p is not h for h in head)]
        return [{"params": rest, "lr": self.settings.lr}, {"params": head, "lr": self.settings.lr_head}]
