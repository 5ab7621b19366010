"""The sensors of the built-in world: the ego's path, the lidar and cameras on it, and what they measure."""

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.datasets.synthetic.render import cast, paint, reflect
from data.datasets.synthetic.world import Scene, make_scene
from data.projection import Rigid

VERSION = "v1.0-synthetic"
FILM, FILM_FRAMES = "film", 20  # a split of its own, and its keyframes
BEAMS, LIDAR_RANGE, DROPPED, RANGE_NOISE = 32, 70.0, 0.06, 0.02
SECONDS, SPEED = 0.5, 6.0  # between keyframes; metres a second of the ego
EPOCH = 1_700_000_000_000_000  # microseconds; time of the first keyframe

# Where nuScenes mounts its sensors: translation in the ego frame, rotation (w, x, y, z), focal length, principal point
LIDAR = ((0.9437, 0.0, 1.8402), (0.7078, -0.0065, 0.0106, -0.7063))
CAMERAS = {
    "CAM_FRONT": ((1.7008, 0.0159, 1.5110), (-0.4998, 0.5030, -0.4998, 0.4974), (1266.4, 816.3, 491.5), 0.02),
    "CAM_FRONT_RIGHT": ((1.5508, -0.4934, 1.4957), (0.2060, -0.2027, 0.6825, -0.6714), (1260.8, 808.0, 495.3), 0.03),
    "CAM_BACK_RIGHT": ((1.0149, -0.4806, 1.5624), (-0.1228, 0.1324, 0.7004, -0.6905), (1259.5, 807.3, 501.2), 0.04),
    "CAM_BACK": ((0.0283, 0.0035, 1.5791), (0.5038, -0.4974, -0.4942, 0.5045), (809.2, 829.2, 481.8), -0.02),
    "CAM_BACK_LEFT": ((1.0357, 0.4848, 1.5910), (-0.6924, 0.7032, 0.1165, -0.1120), (1256.7, 792.1, 492.8), -0.03),
    "CAM_FRONT_LEFT": ((1.5239, 0.4946, 1.5093), (0.6757, -0.6736, 0.2121, -0.2112), (1272.6, 826.6, 479.8), -0.01),
}
IMAGE_SIZE = (900, 1600)
KITTI_SIZE = (375, 1242)
KITTI_TR = np.array([[0, -1, 0, -0.012], [0, 0, -1, -0.054], [1, 0, 0, -0.292]])  # velodyne -> camera 0
KITTI_P2 = np.array([[718.9, 0, 607.2, 45.4], [0, 718.9, 185.2, -0.11], [0, 0, 1, 0.0038]])
KITTI_HEIGHT = 1.73  # of the velodyne


@dataclass(frozen=True)
class SyntheticWorld:
    """The size of the world.

    image_scale: of 1600 x 900 pixels (KITTI: 1242 x 375), and of the intrinsics. azimuths: lidar columns a turn.
    """

    train_scenes: int = 8
    val_scenes: int = 3
    frames_per_scene: int = 5
    image_scale: float = 0.25
    azimuths: int = 512
    seed: int = 0

    cameras: ClassVar = CAMERAS
    seconds: ClassVar[float] = SECONDS  # between keyframes

    @property
    def splits(self) -> dict[str, range]:
        """Split -> its scenes; the last `val_scenes` are held out."""
        both = self.train_scenes + self.val_scenes
        return {"train": range(self.train_scenes), "val": range(self.train_scenes, both)}

    def scene(self, index: int) -> Scene:
        """Scene `index`."""
        return make_scene(np.random.default_rng([self.seed, index]))


class FilmWorld(SyntheticWorld):
    """The first held-out scene of a world, with more keyframes, closer together, seen by the front camera alone."""

    cameras = {"CAM_FRONT": CAMERAS["CAM_FRONT"]}
    seconds = 0.2  # after 20 keyframes the ego is still where no other vehicle drives in its lane

    @property
    def splits(self) -> dict[str, range]:
        """The one split and its scene."""
        return {FILM: range(self.train_scenes, self.train_scenes + 1)}


def quaternion_matrix(q: tuple[float, float, float, float]) -> np.ndarray:
    """Rotation matrix `[3, 3]` of a quaternion (w, x, y, z) of any length."""
    return Rigid.from_quaternion(q, (0, 0, 0)).rotation


def unit(q) -> list[float]:
    return (np.array(q) / np.linalg.norm(q)).tolist()


def ego_at(scene: Scene, seconds: float) -> tuple[np.ndarray, float]:
    """Position `[3]` and yaw of the ego, which keeps to the right lane."""
    x = SPEED * seconds
    yaw = scene.heading(x)
    return np.array([x, scene.middle(x) - 1.9, 0.0]), yaw


def as_pose(rotation: np.ndarray, translation) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    return pose


def ego_pose(scene: Scene, seconds: float) -> np.ndarray:
    position, yaw = ego_at(scene, seconds)
    return as_pose(quaternion_matrix((math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))), position)


def scan(scene: Scene, pose: np.ndarray, azimuths: int, elevations: tuple[float, float], rng: np.random.Generator):
    """Points `[N, 3]` in the lidar frame, intensity `[N]` 0..1, ring `[N]`, material `[N]` of one turn at `pose`."""
    phi, theta = np.meshgrid(
        np.linspace(0, 2 * np.pi, azimuths, endpoint=False), np.radians(np.linspace(*elevations, BEAMS)), indexing="ij"
    )
    phi = phi.ravel() + rng.normal(0, 0.0005, phi.size)
    theta = theta.ravel()
    rays = np.stack((np.cos(theta) * np.cos(phi), np.cos(theta) * np.sin(phi), np.sin(theta)), 1)
    world = rays @ pose[:3, :3].T
    hits = cast(scene, pose[:3, 3], world)
    kept = (hits.distance < LIDAR_RANGE) & (rng.random(len(rays)) > DROPPED)
    distance = hits.distance + rng.normal(0, RANGE_NOISE, len(rays))
    intensity = reflect(rng, hits, world)
    ring = np.tile(np.arange(BEAMS), azimuths)
    return rays[kept] * distance[kept, None], intensity[kept], ring[kept], hits.material[kept]


def photograph(scene: Scene, pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]):
    """Image `[h, w, 3]` uint8 of a camera at `pose` (camera -> world), and each pixel's material `[h, w]`, -1 = sky."""
    v, u = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    rays = np.stack((u.ravel(), v.ravel(), np.ones(u.size)), 1) @ np.linalg.inv(intrinsics).T
    rays = (rays / np.linalg.norm(rays, axis=1, keepdims=True)) @ pose[:3, :3].T
    hits = cast(scene, pose[:3, 3], rays)
    material = np.where(np.isfinite(hits.distance), hits.material, -1)
    return paint(scene, pose[:3, 3], rays, hits).reshape(*size, 3), material.reshape(size)


def make_token(*words: object) -> str:
    return hashlib.md5("/".join(map(str, words)).encode(), usedforsecurity=False).hexdigest()


def camera_matrix(camera: str, scale: float) -> np.ndarray:
    f, cx, cy = CAMERAS[camera][2]
    # pixel centres: column u of the large image lies at (u + 0.5) * scale - 0.5 of the small one
    return np.array([[f * scale, 0, (cx + 0.5) * scale - 0.5], [0, f * scale, (cy + 0.5) * scale - 0.5], [0, 0, 1]])


def scaled(full: tuple[int, int], scale: float) -> tuple[int, int]:
    return round(full[0] * scale), round(full[1] * scale)


def sensor_files(world: SyntheticWorld, scene: int, frame: int) -> dict[str, tuple[str, int, float]]:
    """Sensor channel -> (file name, timestamp in microseconds, seconds since the scene's start)."""
    names = {}
    for channel, offset in {"LIDAR_TOP": 0.0, **{c: row[3] for c, row in world.cameras.items()}}.items():
        seconds = frame * world.seconds + offset
        stamp = EPOCH + scene * 60_000_000 + round(seconds * 1e6)
        ending = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
        names[channel] = f"samples/{channel}/synthetic-{9001 + scene}__{channel}__{stamp}.{ending}", stamp, seconds
    return names


def velodyne_pose(scene: Scene, frame: int) -> np.ndarray:
    return ego_pose(scene, frame * SECONDS) @ as_pose(np.eye(3), (0, 0, KITTI_HEIGHT))


def kitti_p2(scale: float) -> np.ndarray:
    p2 = KITTI_P2.copy()
    p2[:2] *= scale
    p2[:2, 2] += 0.5 * scale - 0.5
    return p2
