"""Segmentation: cross-entropy + Lovász-softmax, and the scores."""

import torch
import torch.nn.functional as F


def lovasz_softmax(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovász-softmax over the classes present (Berman et al. 2018, eq. 11), all classes at once.

    Args:
        probabilities: `[N, K]`, rows sum to 1.
        labels: `[N]` int64 in 0..K-1, N > 0.
    """
    present = torch.unique(labels)
    truth = (labels[:, None] == present).to(probabilities.dtype)  # [N, P]
    errors, order = torch.sort((truth - probabilities[:, present]).abs(), 0, descending=True)
    truth = truth.gather(0, order)
    # Jaccard loss of the prefix of the i largest errors; its differences are the Lovász extension's gradient
    total = truth.sum(0)
    intersection = total - truth.cumsum(0)
    union = total + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    steps = torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))
    return (errors * steps).sum(0).mean()


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + Lovász-softmax over the labelled rows (paper, section 4.2).

    Args:
        logits: `[N, K]`.
        labels: `[N]` int64; rows of label 0 (ignored) are removed first.

    Returns a scalar; zero, with a gradient of zero, if no row is labelled.
    """
    kept = labels != 0
    logits, labels = logits[kept].float() if logits.dtype != torch.float64 else logits[kept], labels[kept]
    if len(labels) == 0:
        return logits.sum() * 0.0
    return F.cross_entropy(logits, labels) + lovasz_softmax(logits.softmax(1), labels)


def predict(logits: torch.Tensor) -> torch.Tensor:
    """Train ids `[N]` of logits `[N, K]`; class 0 (ignored) is never predicted."""
    return logits[:, 1:].argmax(1) + 1


class ConfusionMatrix:
    """Integer counts `[label, prediction]` over any number of points.

    Args:
        classes: number of classes K, the ignored one included.
    """

    def __init__(self, classes: int):
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Count predictions `[N]` against labels `[N]`, both in 0..K-1."""
        n = len(self.counts)
        self.counts += torch.bincount(labels.long() * n + prediction.long(), minlength=n * n).reshape(n, n).cpu()

    def scores(self) -> dict:
        """Scores in 0..1 over the labelled points; those of label 0 count nowhere.

        Returns:
            iou: per class; nan for class 0 and for a class that is neither labelled nor predicted.
            miou: mean IoU of the classes that are not nan.
            fwiou: IoU weighted by how often each class is labelled.
            accuracy: share of labelled points that are right.
        """
        known = self.counts.clone()
        known[0] = 0  # points without a label; a labelled point predicted as 0 stays a miss
        iou = _iou(known)[1:]
        labelled = known[1:].sum(1).double()
        total = labelled.sum()  # 0 if nothing is labelled: every score is nan then
        return {
            "iou": [float("nan"), *iou.tolist()],
            "miou": float(iou.nanmean()),
            "fwiou": float((iou * labelled).nansum() / total),
            "accuracy": float(known.diagonal().sum() / total),
        }

    def code_compatible_miou(self) -> float:
        """mIoU as the published code counts: a class that occurs nowhere has an IoU of 1.

        Its final evaluation also lets the network predict class 0: count `logits.argmax(1)` for that very figure.
        """
        known = self.counts.clone()
        known[0] = 0
        return float(_iou(known)[1:].nan_to_num(nan=1.0).mean())


def _iou(counts: torch.Tensor) -> torch.Tensor:
    counts = counts.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 = nan: the class does not occur
