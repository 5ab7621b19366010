"""Boxes around objects: their corners, the points inside them, and where they go when the cloud moves."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch


@dataclass
class Boxes:
    """Several objects of one frame (arrays) or of a batch (tensors); velocities are left out."""

    centre: np.ndarray | torch.Tensor  # [K, 3] float32, the geometric centre: metres, lidar frame
    size: np.ndarray | torch.Tensor  # [K, 3] float32, metres: length (along the heading), width, height
    yaw: np.ndarray | torch.Tensor  # [K] float32, radians about z: counterclockwise from the frame's x to the heading
    label: np.ndarray | torch.Tensor  # [K] int64, index into `DataSet.boxes`
    points: np.ndarray | torch.Tensor  # [K] int64, lidar points inside
    difficulty: np.ndarray | torch.Tensor  # [K] int64: 0 easy, 1 moderate, 2 hard, 3 none of them (KITTI); -1 = unknown

    def __len__(self) -> int:
        return len(self.centre)

    def select(self, rows) -> "Boxes":
        """The boxes at `rows` (a mask or indices)."""
        return Boxes(*(getattr(self, f.name)[rows] for f in fields(self)))

    def numpy(self) -> "Boxes":
        """The same boxes as arrays in the host's memory."""
        return Boxes(*(np.asarray(torch.as_tensor(getattr(self, f.name)).cpu()) for f in fields(self)))

    def tensors(self) -> "Boxes":
        """The same boxes as tensors."""
        return Boxes(*(torch.as_tensor(np.asarray(getattr(self, f.name))) for f in fields(self)))

    @staticmethod
    def of(centre, size, yaw, label, points=None, difficulty=None) -> "Boxes":
        """Boxes from anything that converts to such arrays; without points and of unknown difficulty unless given."""
        count = len(centre)
        points = np.zeros(count) if points is None else points
        difficulty = np.full(count, -1) if difficulty is None else difficulty
        places = (np.asarray(values, np.float32).reshape(count, 3) for values in (centre, size))
        numbers = (np.asarray(values, np.int64) for values in (label, points, difficulty))
        return Boxes(*places, np.asarray(yaw, np.float32), *numbers)

    @staticmethod
    def empty() -> "Boxes":
        """No boxes at all."""
        return Boxes.of([], [], [], [])

    @staticmethod
    def concatenate(parts: "list[Boxes]") -> "Boxes":
        """All numpy boxes of `parts`, one after another."""
        if not parts:
            return Boxes.empty()
        return Boxes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Boxes)))


@dataclass
class Detections:
    """What is found in one frame."""

    boxes: Boxes  # K of them, as arrays
    score: np.ndarray  # [K] float32, more is surer

    def __len__(self) -> int:
        return len(self.score)

    def select(self, rows) -> "Detections":
        """The detections at `rows` (a mask or indices)."""
        return Detections(self.boxes.select(rows), self.score[rows])


# Of the corners of a box, in units of its size: the bottom counterclockwise from front left, then the top likewise
_CORNERS = np.array([(x, y, z) for z in (-0.5, 0.5) for x, y in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))])


def corners(boxes: Boxes) -> np.ndarray:
    """`[K, 8, 3]` float64, metres: the bottom's counterclockwise from front left, then the top's likewise."""
    offsets = boxes.size[:, None].astype(np.float64) * _CORNERS
    c, s = np.cos(boxes.yaw, dtype=np.float64)[:, None], np.sin(boxes.yaw, dtype=np.float64)[:, None]
    x, y, z = (offsets[:, :, i] for i in range(3))
    return np.stack((c * x - s * y, s * x + c * y, z), 2) + boxes.centre[:, None]


def _inside(points: np.ndarray, boxes: Boxes):
    """For each box in turn, the rows of the points `[N, 3 or more]` inside it or on its border, ascending."""
    x, y, z = (np.ascontiguousarray(points[:, i]) for i in range(3))
    for centre, size, yaw in zip(boxes.centre, boxes.size, boxes.yaw, strict=True):
        dx, dy = x - centre[0], y - centre[1]
        reach = np.hypot(size[0], size[1]) / 2
        near = np.flatnonzero((np.abs(dx) <= reach) & (np.abs(dy) <= reach) & (np.abs(z - centre[2]) <= size[2] / 2))
        dx, dy, c, s = dx[near], dy[near], np.cos(yaw), np.sin(yaw)
        yield near[(np.abs(c * dx + s * dy) <= size[0] / 2) & (np.abs(c * dy - s * dx) <= size[1] / 2)]


def points_in_boxes(points: np.ndarray, boxes: Boxes) -> np.ndarray:
    """The box that each point is in.

    Args:
        points: `[N, 3 or more]` float32, metres; NaN is in no box.
        boxes: K of them, as arrays.

    Returns:
        `[N]` int64 rows of `boxes`, -1 = in none; the first of several that overlap. Borders count as inside.
    """
    box = np.full(len(points), -1, np.int64)
    for i, rows in enumerate(_inside(points, boxes)):
        box[rows[box[rows] < 0]] = i
    return box


def count_points(points: np.ndarray, boxes: Boxes) -> Boxes:
    """The boxes with their `points` counted anew from `points [N, 3 or more]`; one in several boxes counts in each."""
    return replace(boxes, points=np.array([len(rows) for rows in _inside(points, boxes)], np.int64))


def move_boxes(boxes: Boxes, matrix: np.ndarray) -> Boxes:
    """The boxes of a cloud that is rotated about z or mirrored by an orthogonal `matrix [3, 3]`; sizes stay.

    A mirrored box is a box again: its heading is the mirrored one.
    """
    heading = matrix[:2, :2] @ np.stack((np.cos(boxes.yaw), np.sin(boxes.yaw)))
    centre = boxes.centre @ matrix.T.astype(np.float32)
    return replace(boxes, centre=centre, yaw=np.arctan2(heading[1], heading[0]).astype(np.float32))
