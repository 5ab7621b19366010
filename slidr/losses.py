"""The objective: InfoNCE between superpoints and superpixels."""

import torch
import torch.nn.functional as F

from data.frame import Pairs
from slidr.pooling import mean_by_id, superpixel_rows


def superpixel_infonce(
    point_features: torch.Tensor,
    pixel_features: torch.Tensor,
    superpixels: torch.Tensor,
    pairs: Pairs,
    temperature: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """InfoNCE from superpoints to superpixels (paper, section 3.3), one direction.

    A superpoint is the mean over the superpixel's paired points (a point that two cameras see counts in both), a
    superpixel the mean over all its pixels; neither is normalised again. Every occupied superpixel of the batch is a
    negative of every other.

    Args:
        point_features: `[N, C]`, L2-normalised.
        pixel_features: `[I, C, h, w]`, L2-normalised.
        superpixels: `[I, h, w]` int64, ids per image.
        pairs: point = row of point_features, camera = image, row and column of its pixel.
        temperature: of the softmax.

    Returns the scalar loss (zero, with a gradient of zero, if there are no pairs) and numbers for the log: occupied
    superpixels, pairs, and the share of superpoints nearest to their own superpixel.
    """
    rows, n = superpixel_rows(superpixels)
    k, points = mean_by_id(point_features[pairs.point], rows[pairs.camera, pairs.row, pairs.column], n)
    occupied = points > 0  # by count, not by value
    q, _ = mean_by_id(pixel_features.movedim(1, -1).reshape(-1, pixel_features.shape[1]), rows.reshape(-1), n)
    k, q = k[occupied], q[occupied]
    numbers = {"superpixels": len(k), "pairs": len(pairs)}
    if len(k) == 0:
        return (point_features.sum() + pixel_features.sum()) * 0.0, numbers | {"accuracy": 0.0}
    with torch.autocast(k.device.type, enabled=False):  # bfloat16's three digits are too few at this temperature
        logits = k @ q.T / temperature
    target = torch.arange(len(k), device=k.device)
    return F.cross_entropy(logits, target), numbers | {"accuracy": float((logits.argmax(1) == target).float().mean())}
