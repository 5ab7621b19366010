"""From predicted classes to mIoU, in per cent."""

import torch

from slidr.tasks.scores import NAN, Scores

COMPATIBLE = "mIoU as the published code counts"


def predict(logits: torch.Tensor) -> torch.Tensor:
    """Train ids `[N]` of logits `[N, K]`; class 0 (ignored) is never predicted."""
    return logits[:, 1:].argmax(1) + 1


class ConfusionMatrix:
    """Integer counts `[label, prediction]` over any number of points; those of label 0 count in no figure.

    Args:
        classes: number of classes K, the ignored one included.
    """

    def __init__(self, classes: int):
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Count predictions `[N]` against labels `[N]`, both in 0..K-1."""
        n = len(self.counts)
        self.counts += torch.bincount(labels.long() * n + prediction.long(), minlength=n * n).reshape(n, n).cpu()

    def _known(self) -> torch.Tensor:
        """The counts of labelled points; one that is predicted as 0 stays a miss."""
        known = self.counts.double()
        known[0] = 0
        return known

    def iou(self) -> torch.Tensor:
        """Per cent `[K]` float64; nan for class 0 and for a class that is neither labelled nor predicted."""
        known = self._known()
        hits = known.diagonal()
        iou = 100 * hits / (known.sum(0) + known.sum(1) - hits)
        iou[0] = NAN
        return iou

    def mean_iou(self, absent: float = NAN) -> float:
        """Mean over the classes but 0; a class that does not occur counts as `absent`, nan = it is left out."""
        return float(self.iou()[1:].nan_to_num(nan=absent).nanmean())

    def frequency_weighted_iou(self) -> float:
        """IoU weighted by how often each class is labelled; nan if nothing is."""
        labelled = self._known().sum(1)
        return float((self.iou() * labelled).nansum() / labelled.sum())

    def accuracy(self) -> float:
        """Per cent of the labelled points that are right; nan if there are none."""
        known = self._known()
        return float(100 * known.diagonal().sum() / known.sum())


def segmentation_scores(masked: ConfusionMatrix, unmasked: ConfusionMatrix, classes: tuple[str, ...]) -> Scores:
    """IoU of each class and their mean.

    Args:
        masked: of predictions that are never class 0.
        unmasked: of predictions that may be 0. The published code's evaluation allows that, and gives a class that
            occurs nowhere an IoU of 100: so counted, mIoU stands beside published figures.
        classes: names by train id.
    """
    return Scores(
        figures=dict(zip(classes[1:], masked.iou()[1:].tolist(), strict=True)) | {"mIoU": masked.mean_iou()},
        primary="mIoU",
        measure="IoU",
        comparable={COMPATIBLE: unmasked.mean_iou(absent=100.0)},
        details={
            "frequency-weighted IoU": masked.frequency_weighted_iou(),
            "accuracy": masked.accuracy(),
            "confusion": masked.counts.tolist(),
        },
    )
