"""The objective: InfoNCE from points to images."""

import torch
import torch.nn.functional as F


def infonce(k: torch.Tensor, q: torch.Tensor, temperature: float) -> tuple[torch.Tensor, float]:
    """InfoNCE from superpoints to superpixels, one direction (paper, eq. 1).

    Args:
        k: `[S, C]` superpoints (or points), float32 at least.
        q: `[S or more, C]`; row s belongs to row s of k, all others are its negatives: those of the batch on this
            device, and, in further rows, whatever else is to be told apart.
        temperature: of the softmax.

    Returns the scalar loss (zero, with a gradient of zero, if there are no rows) and the share of the rows of k that
    lie nearest to their own row of q.
    """
    if len(k) == 0:
        return (k.sum() + q.sum()) * 0.0, 0.0
    with torch.autocast(k.device.type, enabled=False):  # bfloat16's three digits are too few at this temperature
        logits = (k / temperature) @ q.T
    target = torch.arange(len(k), device=k.device)
    return F.cross_entropy(logits, target), float((logits.argmax(1) == target).float().mean())
