"""The loss of segmentation: cross-entropy + Lovász-softmax."""

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
