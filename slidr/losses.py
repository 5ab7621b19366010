"""Contrastive losses and distances."""

import math
from typing import Literal

import torch
import torch.nn.functional as F

from slidr.training import distributed


def infonce(k: torch.Tensor, q: torch.Tensor, temperature: float, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE from rows of k to rows of q, one direction (SLidR, eq. 1).

    Args:
        k: `[S, C]` superpoints or points, float32 at least.
        q: `[first + S or more, C]`; row first + s belongs to row s of k, all other rows are its negatives.
        temperature: of the softmax.
        first: where the rows of q that belong to k begin: not at 0 where q was gathered from several processes.

    Returns the scalar loss (zero, with a gradient of zero, if k has no rows) and, detached, the share of the rows of k
    that lie nearest to their own row of q.
    """
    if len(k) == 0:
        return (k.sum() + q.sum()) * 0.0, k.new_zeros(())
    with torch.autocast(k.device.type, enabled=False):  # bfloat16's three digits are too few at this temperature
        logits = (k / temperature) @ q.T
    target = torch.arange(first, first + len(k), device=k.device)
    return F.cross_entropy(logits, target), (logits.detach().argmax(1) == target).float().mean()


def gathered_infonce(k: torch.Tensor, q: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE of this process's rows among the rows of all processes, as if these were one batch; see `infonce`.

    The mean of the losses over the processes is the loss of that batch.
    """
    share = distributed.share(len(k))
    q, first = distributed.gathered(q)
    loss, accuracy = infonce(k, q, temperature, first)
    return loss * share, accuracy


def queue_infonce(
    q: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE from each query to its own key among the keys of a queue (MoCo: He et al., CVPR 2020, eq. 1).

    Args:
        q: `[B, C]` unit vectors, float32 at least.
        positive: `[B, C]` unit vectors; row b belongs to row b of q.
        negatives: `[K, C]` unit vectors, the same for all rows of q.
        temperature: of the softmax.

    Returns the scalar loss and, detached, the share of the queries that lie nearest to their own key.
    """
    with torch.autocast(q.device.type, enabled=False):
        logits = torch.cat(((q * positive).sum(1, keepdim=True), q @ negatives.T), 1) / temperature
    target = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    return F.cross_entropy(logits, target), (logits.detach().argmax(1) == 0).float().mean()


def hardest_contrastive(
    a: torch.Tensor,
    b: torch.Tensor,
    pairs: torch.Tensor,
    matches: torch.Tensor,
    candidates: tuple[torch.Tensor, torch.Tensor],
    positive: float = 0.1,
    negative: float = 1.4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hardest-contrastive loss (PointContrast, section 3.3; Choy et al. 2019, FCGF), margins of PointContrast's code.

    With Euclidean distances d: the mean over the pairs of max(0, d(a, b)^2 - positive), plus that over pairs and both
    directions of max(0, negative - d)^2, d to the nearest candidate of the other view unless that is a match.

    Args:
        a, b: `[V, C]`, `[W, C]` unit vectors of the two views, float32.
        pairs: `[P, 2]` int64 rows of a and b that belong together.
        matches: `[M, 2]` likewise, all that do: the nearest candidate counts for nothing if it is one of them.
        candidates: rows of a `[I]` and of b `[J]`, one of each at least if there are pairs.

    Returns the scalar loss (zero, with a gradient of zero, without pairs) and, detached, the share of the pairs whose
    rows are closer to each other than to those candidates.
    """
    if len(pairs) == 0:
        return (a.sum() + b.sum()) * 0.0, a.new_zeros(())
    own = (a[pairs[:, 0]] - b[pairs[:, 1]]).square().sum(1)
    loss, closer = F.relu(own - positive).mean(), torch.ones_like(own, dtype=torch.bool)
    true = matches[:, 0] * len(b) + matches[:, 1]
    for side, (anchors, others) in enumerate(((a, b), (b, a))):
        anchor, rows = anchors[pairs[:, side]], candidates[1 - side]
        with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
            hardest = rows[(anchor @ others[rows].T).argmax(1)]
        distance = (anchor - others[hardest]).norm(dim=1)
        place = (pairs[:, 0], hardest) if side == 0 else (hardest, pairs[:, 1])
        counts = ~torch.isin(place[0] * len(b) + place[1], true)
        loss = loss + (F.relu(negative - distance).square() * counts).sum() / counts.sum().clamp(min=1) / 2
        closer &= ~counts | (own.detach() < distance.detach().square())
    return loss, closer.float().mean()


def unit_distance(k: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Mean Euclidean distance of k's rows to q's, all made unit vectors: sqrt(2 - 2 cos), not squared (ScaLR, eq. 1).

    Args:
        k, q: `[M, C]`, row by row. The loss is zero, with a gradient of zero, if there is no row.
    """
    k, q = (F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1) for rows in (k, q))
    return (k - q).norm(dim=1).sum() / max(1, len(k))


def cosine_distance(k: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cos of k's rows and q's; arguments as of `unit_distance`."""
    k, q = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (k, q))
    return (1 - F.cosine_similarity(k, q, dim=1)).sum() / max(1, len(k))


def tolerant_infonce(
    k: torch.Tensor,
    q: torch.Tensor,
    likeness: torch.Tensor,
    temperature: float,
    tolerance: float,
    excluded: Literal["zeroed", "masked"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE that does not push away the negatives most like the positive (ST-SLidR, Mahmoud et al., CVPR 2023).

    Args:
        k: `[S, C]`, q: `[S, C]`; row s of q belongs to row s of k.
        likeness: `[S, S]` cosine of what q's rows show, by the frozen teacher.
        temperature: of the softmax.
        tolerance: share of the rows of q, the most alike ones (its own among them), that are no negatives of a row.
        excluded: "zeroed" = their logits become 0, and their exp 1 stays in the denominator (published code);
            "masked" = they leave it (what the paper means).

    Returns the loss of each row `[S]` and, detached, the share of the rows of k nearest to their own row of q.
    """
    if len(k) == 0:
        return (k.sum(1) + q.sum(1)) * 0.0, k.new_zeros(())
    with torch.autocast(k.device.type, enabled=False):
        logits = (k / temperature) @ q.T
    target = torch.arange(len(k), device=k.device)
    accuracy = (logits.detach().argmax(1) == target).float().mean()
    most = likeness.topk(math.ceil(tolerance * (len(k) - 1)), dim=1).indices
    alike = torch.zeros_like(likeness, dtype=torch.bool).scatter_(1, most, True).fill_diagonal_(False)
    logits = logits.masked_fill(alike, 0.0 if excluded == "zeroed" else -torch.inf)
    return F.cross_entropy(logits, target, reduction="none"), accuracy


def rarity(likeness: torch.Tensor, alike: float) -> torch.Tensor:
    """A weight in 0..1 for each row: 1 for the row least like the others, 0 for the one most like them (ST-SLidR).

    Args:
        likeness: `[S, S]` cosines.
        alike: least cosine that counts.

    All are 1 if no row differs from the others.
    """
    votes = torch.where(likeness >= alike, likeness, 0.0).sum(1)
    votes = votes - votes.min() if len(votes) else votes
    return 1 - votes / votes.max().clamp_min(1e-12) if len(votes) else votes
