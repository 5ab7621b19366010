"""Boxes in pictures: found and true ones, from above and in a camera."""

from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection

from data.boxes import Boxes, corners
from data.frame import Frame
from slidr.pictures import EXTENT, above, class_legend, drawing, grey, ground, scatter, show, visible

Panel = tuple[Boxes, np.ndarray | None]  # boxes with their scores [K]; None = they are true ones

EDGES = np.array([(i, i + 1 - 4 * (i % 4 == 3)) for i in range(8)] + [(i, i + 4) for i in range(4)])  # of 8 corners
NEAREST = 0.5  # metres of depth at which a box that reaches behind the camera is cut
FEW = 12  # pairs of a camera below which it is not known well enough to draw in it


def birds_eye(
    frame: Frame, panels: dict[str, Panel], classes: tuple[str, ...], colours: np.ndarray, title: str, path: Path
) -> None:
    """Boxes side by side, from above, with a line to where they head; paler is less certain.

    Args:
        frame: whose points are behind them.
        panels: name -> boxes, the best first.
        classes, colours: names and RGB uint8 `[K, 3]` by the boxes' labels.
        title: of the frame.
        path: PNG to write.
    """
    with drawing(path, 1, len(panels), (6.25 * len(panels), 5.8), f"{title}, {EXTENT}") as axes:
        for axis, (name, (boxes, scores)) in zip(axes[0], panels.items(), strict=True):
            ground(axis, f"{name}: {len(boxes)} boxes")
            scatter(axis, above(frame), s=0.6, c="#59616b")
            bottom = corners(boxes)[:, :4, :2]
            front = bottom[:, [0, 3]].mean(1, keepdims=True)
            lines = np.concatenate((boxes.centre[:, None, :2], front, bottom, bottom[:, :1]), 1)
            places = above(frame, lines.reshape(-1, 2)).reshape(lines.shape)
            shades = _shades(boxes, scores, colours)
            axis.add_collection(LineCollection(places[::-1], colors=shades[::-1], linewidths=1))  # the best on top
            if scores is not None:
                for place, score in zip(places[:, 2], scores, strict=True):
                    axis.text(*place, f"{score:.2f}", color="white", fontsize=4, clip_on=True)
        _legend(axes[0, 0].figure, panels, classes, colours)


def camera(
    frame: Frame, panels: dict[str, Panel], classes: tuple[str, ...], colours: np.ndarray, title: str, path: Path
) -> None:
    """Boxes one above the other in the first camera; arguments as those of `birds_eye`."""
    view, pairs = frame.cameras[0], frame.pairs.select(frame.pairs.camera == 0)
    pixels = np.stack((pairs.column, pairs.row), 1)
    matrix = find_projection(frame.points[pairs.point, :3], pixels) if len(pairs) >= FEW else None
    height = 7 * view.image.shape[0] / view.image.shape[1] + 0.35
    with drawing(path, len(panels), 1, (9, height * len(panels) + 0.3), title) as axes:
        for axis, (name, (boxes, scores)) in zip(axes[:, 0], panels.items(), strict=True):
            show(axis, grey(view.image, 0.6), f"{view.name}: {name}")
            if matrix is not None:
                lines, box = project_edges(boxes, matrix)
                shades = _shades(boxes, scores, colours)[box]
                axis.add_collection(LineCollection(lines[::-1], colors=shades[::-1], linewidths=1))
        _legend(axes[0, 0].figure, panels, classes, colours)


def find_projection(points: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The camera that sees points at pixels: `[3, 4]`, whose last row gives the depth in metres.

    Least squares of the direct linear transform (Hartley and Zisserman, section 7.1), on numbers of size 1. A frame
    carries point-pixel pairs and no calibration, and thousands of pairs tell a camera to a fraction of a pixel.

    Args:
        points: `[M, 3]` metres, M >= 6, not all in one plane.
        pixels: `[M, 2]` column and row.
    """
    to_unit = [_to_unit(values.astype(np.float64)) for values in (points, pixels)]
    x, (u, v) = (_homogeneous(points) @ to_unit[0].T), (_homogeneous(pixels) @ to_unit[1].T)[:, :2].T
    zero = np.zeros_like(x)
    equations = np.concatenate((np.hstack((x, zero, -u[:, None] * x)), np.hstack((zero, x, -v[:, None] * x))))
    solution = np.linalg.eigh(equations.T @ equations)[1][:, 0].reshape(3, 4)
    matrix = np.linalg.inv(to_unit[1]) @ solution @ to_unit[0]
    matrix /= np.linalg.norm(matrix[2, :3])
    return matrix * np.sign(np.median(_homogeneous(points) @ matrix[2]))  # what is seen is in front


def project_edges(boxes: Boxes, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of boxes in pixels, `[E, 2, 2]`, and the box of each, `[E]`; what is behind the camera is cut off."""
    ends = (_homogeneous(corners(boxes)) @ matrix.T)[:, EDGES]  # [K, 12, 2, 3]
    box = np.repeat(np.arange(len(boxes)), len(EDGES))
    ends = ends.reshape(-1, 2, 3)
    seen = (ends[..., 2] > NEAREST).any(1)
    ends, box = ends[seen], box[seen]
    depth, other = ends[..., 2:], ends[:, ::-1]
    share = np.clip((NEAREST - depth) / np.where(depth < NEAREST, other[..., 2:] - depth, 1), 0, 1)
    ends = ends + share * (other - ends)
    return ends[..., :2] / ends[..., 2:], box


def _shades(boxes: Boxes, scores: np.ndarray | None, colours: np.ndarray) -> np.ndarray:
    """RGBA `[K, 4]` of each box."""
    alpha = np.ones(len(boxes)) if scores is None else np.clip(scores, 0.1, 1)
    return np.concatenate((visible(colours)[boxes.label], alpha[:, None]), 1)


def _legend(figure, panels: dict[str, Panel], classes: tuple[str, ...], colours: np.ndarray) -> None:
    occurring = np.unique(np.concatenate([boxes.label for boxes, _ in panels.values()]))
    class_legend(figure, occurring, classes, colours)


def _homogeneous(values: np.ndarray) -> np.ndarray:
    """A 1 after the last of the coordinates `[..., D]`."""
    return np.concatenate((values, np.ones((*values.shape[:-1], 1))), -1)


def _to_unit(values: np.ndarray) -> np.ndarray:
    """The matrix `[D + 1, D + 1]` that takes values `[M, D]` to a mean of 0 and a spread of 1."""
    middle, spread = values.mean(0), max(float(values.std()), 1e-9)
    matrix = np.eye(len(middle) + 1)
    matrix[:-1] = np.concatenate((np.eye(len(middle)), -middle[:, None]), 1) / spread
    return matrix
