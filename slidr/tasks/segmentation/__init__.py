"""Segmentation: a class for every point. The loss, the scores, the task, and what is trained for it."""

from slidr.tasks.segmentation.learners import FineTuning, LinearProbe
from slidr.tasks.segmentation.losses import lovasz_softmax, segmentation_loss
from slidr.tasks.segmentation.metrics import ConfusionMatrix, predict, segmentation_scores
from slidr.tasks.segmentation.task import Segmentation, open_labelled, segmentation_loader, with_labels

__all__ = [
    "ConfusionMatrix",
    "FineTuning",
    "LinearProbe",
    "Segmentation",
    "lovasz_softmax",
    "open_labelled",
    "predict",
    "segmentation_loader",
    "segmentation_loss",
    "segmentation_scores",
    "with_labels",
]
