"""How much two boxes that stand upright overlap, seen from above and in space."""

import numpy as np

from data.boxes import Boxes, corners

_TOLERANCE = 1e-9  # metres; edges nearer than this to each other count as one


def bev_iou(first: Boxes, second: Boxes) -> np.ndarray:
    """Intersection over union of the outlines from above, `[K, J]` float64 of K and J boxes."""
    shared = overlap_areas(first, second)
    areas = [np.prod(boxes.size[:, :2], 1, dtype=np.float64) for boxes in (first, second)]
    return _share(shared, areas[0][:, None] + areas[1] - shared)


def iou_3d(first: Boxes, second: Boxes) -> np.ndarray:
    """Intersection over union of the volumes, `[K, J]` float64 of K and J boxes."""
    (low, high), (other_low, other_high) = (
        [boxes.centre[:, 2].astype(np.float64) + sign * boxes.size[:, 2] / 2 for sign in (-1, 1)]
        for boxes in (first, second)
    )
    height = np.minimum(high[:, None], other_high) - np.maximum(low[:, None], other_low)
    shared = overlap_areas(first, second) * height.clip(0)
    volumes = [np.prod(boxes.size, 1, dtype=np.float64) for boxes in (first, second)]
    return _share(shared, volumes[0][:, None] + volumes[1] - shared)


def overlap_areas(first: Boxes, second: Boxes) -> np.ndarray:
    """Square metres that the outlines from above share, `[K, J]` float64 of K and J boxes.

    The area of a polygon is half the sum, over its edges counterclockwise, of start x end. The edges of an intersection
    are what lies of each outline's edges inside the other, which is a rectangle in its own frame. An edge that both
    share counts as one of the first.
    """
    outlines = [corners(boxes)[:, :4, :2] for boxes in (first, second)]
    radii = [np.linalg.norm(boxes.size[:, :2], axis=1) / 2 for boxes in (first, second)]
    distance = np.linalg.norm(first.centre[:, None, :2] - second.centre[:, :2], axis=2)
    i, j = np.nonzero(distance <= radii[0][:, None] + radii[1])  # the others are too far apart
    areas = np.zeros(distance.shape)
    origin = second.centre[j, None, :2].astype(np.float64)  # numbers near zero are more exact
    ours, theirs = outlines[0][i] - origin, outlines[1][j] - origin
    for edges, boxes, row, slack in ((ours, second, j, _TOLERANCE), (theirs, first, i, -_TOLERANCE)):
        step = np.roll(edges, -1, axis=1) - edges
        middle = boxes.centre[row, None, :2] - origin
        half = boxes.size[row, None, :2].astype(np.float64) / 2 + slack
        length = _inside(_turned(edges - middle, boxes.yaw[row]), _turned(step, boxes.yaw[row]), half)
        areas[i, j] += (length * (edges[..., 0] * step[..., 1] - edges[..., 1] * step[..., 0])).sum(1) / 2
    return areas.clip(0)


def _turned(vectors: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Vectors `[M, 4, 2]` along the axes of boxes with headings `yaw [M]`."""
    c, s = np.cos(yaw, dtype=np.float64)[:, None], np.sin(yaw, dtype=np.float64)[:, None]
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack((c * x + s * y, c * y - s * x), 2)


def _inside(start: np.ndarray, step: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The share of each edge, from `start` to `start + step [M, 4, 2]`, within `half [M, 1, 2]` of zero: `[M, 4]`."""
    with np.errstate(divide="ignore", invalid="ignore"):  # along an axis: all of it, or nothing
        ends = np.stack(((-half - start) / step, (half - start) / step))
    everywhere = np.where(np.abs(start) <= half, np.inf, -np.inf)
    enter = np.where(step == 0, -everywhere, ends.min(0)).max(2).clip(0)
    leave = np.where(step == 0, everywhere, ends.max(0)).min(2).clip(None, 1)
    return (leave - enter).clip(0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
