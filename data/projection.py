"""Which lidar points a camera sees, and at which pixel."""

from dataclasses import dataclass

import numpy as np

MIN_DEPTH = 1.0  # metres; nearer returns lie on the vehicle itself


@dataclass(frozen=True)
class Rigid:
    """A rigid motion x -> rotation @ x + translation, e.g. sensor -> vehicle or vehicle -> world."""

    rotation: np.ndarray  # [3, 3] float64
    translation: np.ndarray  # [3] float64, metres

    @staticmethod
    def from_quaternion(quaternion: np.ndarray, translation: np.ndarray) -> "Rigid":
        """The motion with `quaternion` [4] = (w, x, y, z), any length but zero, and `translation` [3] in metres."""
        w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        return Rigid(rotation, np.asarray(translation, np.float64))

    def matrix(self) -> np.ndarray:
        """The motion as one homogeneous matrix `[4, 4]` float64."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.translation
        return matrix

    # Points are rounded to float32 after each rotation and each translation, as in the published code: vehicles are
    # a kilometre from the world's origin, where rounding moves dozens of pixels of a frame by one.

    def apply(self, points: np.ndarray) -> np.ndarray:
        """The moved points, `[3, N]` float32 -> `[3, N]` float32."""
        points = (self.rotation @ points).astype(np.float32)
        return (points + self.translation[:, None]).astype(np.float32)

    def undo(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `apply`, `[3, N]` float32 -> `[3, N]` float32."""
        points = (points - self.translation[:, None]).astype(np.float32)
        return (self.rotation.T @ points).astype(np.float32)


def is_rigid(matrix: np.ndarray) -> np.ndarray:
    """Whether the first three columns of matrices `[..., 3, 3 or 4]` are rotations, up to their text's precision."""
    rotation = matrix[..., :3]
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max((-1, -2))
        return (distance < 0.01) & (np.linalg.det(rotation) > 0)


def is_camera(matrix: np.ndarray) -> bool:
    """Whether a matrix `[3, 3 or 4]` projects: one of zeros, or of lower rank, sees no point."""
    return bool(np.linalg.det(matrix[:, :3]) > 1e-9)


def project(
    points: np.ndarray,
    outward: list[Rigid],
    inward: list[Rigid],
    camera: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points a camera sees (paper, section 3.1; margins of the published code).

    On nuScenes: lidar -> vehicle -> world with the poses of the lidar's moment, world -> vehicle -> camera with those
    of the camera's. A point is seen if it lies more than 1 m deep and 0 < u < width - 1, 0 < v < height - 1.

    Args:
        points: `[N, 3 or more]` float32, metres.
        outward: motions applied in order, from the points' frame on; none for points in the world.
        inward: motions undone in order.
        camera: `[3, 3]` intrinsics, or `[3, 4]` projection matrix, pixels.
        size: (height, width) of the image, pixels.

    Returns:
        Three `[M]` int64 arrays: the row of each seen point in `points` (ascending), its pixel row and pixel column
        (rounded half to even).
    """
    moved = points[:, :3].T
    for motion in outward:
        moved = motion.apply(moved)
    for motion in inward:
        moved = motion.undo(moved)
    pixels = camera[:, :3] @ moved.astype(np.float64)
    if camera.shape[1] == 4:
        pixels += camera[:, 3:]
    depth = pixels[2]
    with np.errstate(divide="ignore", invalid="ignore"):  # depth 0 fails the test below
        u, v = pixels[:2] / depth
    height, width = size
    seen = np.flatnonzero((depth > MIN_DEPTH) & (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1))
    return seen, np.round(v[seen]).astype(np.int64), np.round(u[seen]).astype(np.int64)
