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
        """`iou` per class (nan if a class is neither labelled nor predicted; [0] always nan), `miou` over the others.

        Points of label 0 count nowhere. `code_compatible_miou` is what the published code prints in the end: class 0
        is not masked out of the points, and a class that is absent counts as 1.
        """
        known = self.counts.clone()
        known[0] = 0  # points without a label; a labelled point predicted as 0 stays a miss
        iou = _iou(known)[1:]
        code = torch.nan_to_num(_iou(self.counts)[1:], nan=1.0)
        labelled = known[1:].sum(1).double()
        seen = ~torch.isnan(iou)
        return {
            "iou": [float("nan"), *iou.tolist()],
            "miou": float(iou[seen].mean()) if seen.any() else float("nan"),
            "fwiou": float((iou * labelled)[seen].sum() / labelled.sum()) if labelled.sum() else float("nan"),
            "code_compatible_miou": float(code.mean()),
        }


def _iou(counts: torch.Tensor) -> torch.Tensor:
    counts = counts.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 = nan: the class does not occur
