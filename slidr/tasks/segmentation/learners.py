"""What is trained for segmentation: one linear layer on a frozen network, or the whole network."""

import hashlib
from pathlib import Path

import torch

from data.frame import Batch
from slidr.config import Fewshot, Linprobe
from slidr.networks.model_file import (
    Layers,
    Pretraining,
    TaskRecord,
    backbone_weights,
    head_layers,
    layers_of,
    load_segmenter,
    read_model,
)
from slidr.networks.student import make_head
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

    def class_head(self) -> Layers:
        """What model.pt keeps as layers to classes."""
        return head_layers(self.task.student)

    def heads(self) -> dict:
        """The class head and its classes."""
        return {"class_head": self.class_head(), "classes": self.task.reader.dataset.classes}

    def task_of(self, path: Path, device: torch.device) -> Segmentation:
        """See `TaskLearner.task_of`."""
        student, head = load_segmenter(read_model(path), path)
        return Segmentation(student.to(device), self.task.reader, head)


class LinearProbe(SegmentationLearner):
    """A head learns classes from frozen features, the network's batch norm in eval mode (paper, section 4.2).

    The network is held by the task alone, outside state_dict, DDP and the optimiser. The published head is linear: the
    network's last layer. Others stand beside the network, which needs no last layer then.
    """

    def __init__(
        self, settings: Linprobe, task: Segmentation, record: TaskRecord, pretraining: Pretraining | None = None
    ):
        super().__init__(settings, task, record, pretraining)
        network = task.student.requires_grad_(False).eval().network
        if settings.head == "linear":
            self.head = network.final.requires_grad_(True)
        else:
            channels, classes = network.channels, len(task.reader.dataset.classes)
            hidden = channels if settings.head == "mlp" else None
            head = make_head(channels, classes, hidden, norm=settings.head == "batchnorm")
            self.head = head.to(network.conv0p1s1.weight)
            task.head = lambda features: self.head.eval()(features)  # the loop sets it back to train mode
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
        """The head on frozen features."""
        features, labels = self.features(batch)
        if self.settings.head == "linear":
            return features @ self.head.weight[0] + self.head.bias, labels
        return self.head(features), labels

    def class_head(self) -> Layers:
        """The head; a batch norm is part of its linear layer then."""
        return super().class_head() if self.settings.head == "linear" else layers_of(self.head)

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
        """The backbone at `lr`, the last layer at `lr_head`.

        With `layer_decay` the backbone's last part has lr * layer_decay, and each one further from the last layer that
        much less again: four parts of the decoder, four of the encoder, the stem (Bao et al., BEiT, 2022).
        """
        s, network = self.settings, self.student.network
        parts = network.parts()[::-1]
        if s.layer_decay == 1:
            parts = [sum(parts, [])]
        groups = [{"params": part, "lr": s.lr * s.layer_decay**i} for i, part in enumerate(parts, 1)]
        return [*groups, {"params": list(network.final.parameters()), "lr": s.lr_head}]
