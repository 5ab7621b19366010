"""The built-in world on disk, in the official nuScenes and SemanticKITTI layouts."""

import hashlib
import json
import math
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from data.datasets.nuscenes import CATEGORIES
from data.datasets.synthetic.render import KITTI_LABEL, NUSCENES_LABEL, cast, paint, reflect
from data.datasets.synthetic.world import Scene, make_scene
from data.files import InputError, atomic_write, read_json, write_text
from data.progress import Progress
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
    """The first held-out scene of a world alone, in more keyframes and less apart, seen by the front camera."""

    cameras = {"CAM_FRONT": CAMERAS["CAM_FRONT"]}
    seconds = 0.2  # after 20 keyframes the ego is still where no other vehicle drives in its lane

    @property
    def splits(self) -> dict[str, range]:
        """The one split and its scene."""
        return {FILM: range(self.train_scenes, self.train_scenes + 1)}


def quaternion_matrix(q: tuple[float, float, float, float]) -> np.ndarray:
    """Rotation matrix `[3, 3]` of a quaternion (w, x, y, z) of any length."""
    return Rigid.from_quaternion(q, (0, 0, 0)).rotation


def _unit(q) -> list[float]:
    return (np.array(q) / np.linalg.norm(q)).tolist()


def _ego(scene: Scene, seconds: float) -> tuple[np.ndarray, float]:
    """Position `[3]` and yaw of the ego, which keeps to the right lane."""
    x = SPEED * seconds
    yaw = scene.heading(x)
    return np.array([x, scene.middle(x) - 1.9, 0.0]), yaw


def _pose(rotation: np.ndarray, translation) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    return pose


def _ego_pose(scene: Scene, seconds: float) -> np.ndarray:
    position, yaw = _ego(scene, seconds)
    return _pose(quaternion_matrix((math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))), position)


def _scan(scene: Scene, pose: np.ndarray, azimuths: int, elevations: tuple[float, float], rng: np.random.Generator):
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


def _photograph(scene: Scene, pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]):
    """Image `[h, w, 3]` uint8 of a camera at `pose` (camera -> world), and each pixel's material `[h, w]`, -1 = sky."""
    v, u = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    rays = np.stack((u.ravel(), v.ravel(), np.ones(u.size)), 1) @ np.linalg.inv(intrinsics).T
    rays = (rays / np.linalg.norm(rays, axis=1, keepdims=True)) @ pose[:3, :3].T
    hits = cast(scene, pose[:3, 3], rays)
    material = np.where(np.isfinite(hits.distance), hits.material, -1)
    return paint(scene, pose[:3, 3], rays, hits).reshape(*size, 3), material.reshape(size)


def _token(*words: object) -> str:
    return hashlib.md5("/".join(map(str, words)).encode(), usedforsecurity=False).hexdigest()


def _intrinsics(camera: str, scale: float) -> np.ndarray:
    f, cx, cy = CAMERAS[camera][2]
    # pixel centres: column u of the large image lies at (u + 0.5) * scale - 0.5 of the small one
    return np.array([[f * scale, 0, (cx + 0.5) * scale - 0.5], [0, f * scale, (cy + 0.5) * scale - 0.5], [0, 0, 1]])


def _size(full: tuple[int, int], scale: float) -> tuple[int, int]:
    return round(full[0] * scale), round(full[1] * scale)


def _save_array(path: Path, values: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(values.tobytes())


def _save_image(path: Path, image: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        options = {"format": "JPEG", "quality": 92} if path.suffix == ".jpg" else {"format": "PNG"}
        Image.fromarray(image).save(temporary, **options)


def _nuscenes_names(world: SyntheticWorld, scene: int, frame: int) -> dict[str, tuple[str, int, float]]:
    """Sensor channel -> (file name, timestamp in microseconds, seconds since the scene's start)."""
    names = {}
    for channel, offset in {"LIDAR_TOP": 0.0, **{c: row[3] for c, row in world.cameras.items()}}.items():
        seconds = frame * world.seconds + offset
        stamp = EPOCH + scene * 60_000_000 + round(seconds * 1e6)
        ending = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
        names[channel] = f"samples/{channel}/synthetic-{9001 + scene}__{channel}__{stamp}.{ending}", stamp, seconds
    return names


def _write_nuscenes_frame(job: tuple[Path, SyntheticWorld, int, int]) -> None:
    root, world, scene_index, frame = job
    scene, names = world.scene(scene_index), _nuscenes_names(world, scene_index, frame)
    rng = np.random.default_rng([world.seed, scene_index, frame])
    name, _, seconds = names["LIDAR_TOP"]
    pose = _ego_pose(scene, seconds) @ _pose(quaternion_matrix(LIDAR[1]), LIDAR[0])
    points, intensity, ring, material = _scan(scene, pose, world.azimuths, (-30.0, 10.0), rng)
    rows = np.column_stack((points, np.round(intensity * 255), ring)).astype(np.float32)
    _save_array(root / name, rows)
    token = _token(world, "LIDAR_TOP", scene_index, frame)
    _save_array(root / "lidarseg" / VERSION / f"{token}_lidarseg.bin", NUSCENES_LABEL[material])
    for camera, (translation, rotation, _, _) in world.cameras.items():
        name, _, seconds = names[camera]
        pose = _ego_pose(scene, seconds) @ _pose(quaternion_matrix(rotation), translation)
        size = _size(IMAGE_SIZE, world.image_scale)
        _save_image(root / name, _photograph(scene, pose, _intrinsics(camera, world.image_scale), size)[0])


def _tables(world: SyntheticWorld) -> dict[str, list[dict]]:
    """Every table of the official layout."""
    tables: dict[str, list[dict]] = {"attribute": [], "instance": [], "sample_annotation": []}
    tables["visibility"] = [
        {"token": str(i + 1), "level": f"v{a}-{b}", "description": f"{a} to {b} % visible"}
        for i, (a, b) in enumerate(((0, 40), (40, 60), (60, 80), (80, 100)))
    ]
    tables["category"] = [
        {"token": _token("category", name), "name": name, "description": "", "index": i}
        for i, name in enumerate(CATEGORIES)
    ]
    log = _token(world, "log")
    tables["log"] = [
        {
            "token": log,
            "logfile": "synthetic",
            "vehicle": "n000",
            "date_captured": "2023-11-14",
            "location": "synthetic",
        }
    ]
    tables["map"] = [
        {"token": _token(world, "map"), "category": "semantic_prior", "filename": "maps/empty.png", "log_tokens": [log]}
    ]
    sensors = {"LIDAR_TOP": LIDAR, **{c: row[:2] for c, row in world.cameras.items()}}
    tables["sensor"] = [
        {"token": _token("sensor", c), "channel": c, "modality": "lidar" if c == "LIDAR_TOP" else "camera"}
        for c in sensors
    ]
    tables["calibrated_sensor"] = [
        {
            "token": _token(world, "calibration", c),
            "sensor_token": _token("sensor", c),
            "translation": list(translation),
            "rotation": _unit(rotation),
            "camera_intrinsic": [] if c == "LIDAR_TOP" else _intrinsics(c, world.image_scale).tolist(),
        }
        for c, (translation, rotation) in sensors.items()
    ]
    for name in ("scene", "sample", "sample_data", "ego_pose", "lidarseg"):
        tables[name] = []
    height, width = _size(IMAGE_SIZE, world.image_scale)
    last = world.frames_per_scene - 1
    for s in (scene for part in world.splits.values() for scene in part):
        scene = world.scene(s)
        samples = [_token(world, "sample", s, f) for f in range(world.frames_per_scene)]
        tables["scene"].append(
            {
                "token": _token(world, "scene", s),
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": f"scene-{9001 + s}",
                "description": "a street of the built-in world",
            }
        )
        for f, sample in enumerate(samples):
            names = _nuscenes_names(world, s, f)
            tables["sample"].append(
                {
                    "token": sample,
                    "timestamp": names["LIDAR_TOP"][1],
                    "prev": samples[f - 1] if f else "",
                    "next": samples[f + 1] if f < last else "",
                    "scene_token": _token(world, "scene", s),
                }
            )
            for channel, (file, stamp, seconds) in names.items():
                token = _token(world, channel, s, f)
                position, yaw = _ego(scene, seconds)
                tables["ego_pose"].append(
                    {
                        "token": token,
                        "timestamp": stamp,
                        "rotation": [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)],
                        "translation": position.tolist(),
                    }
                )
                tables["sample_data"].append(
                    {
                        "token": token,
                        "sample_token": sample,
                        "ego_pose_token": token,
                        "calibrated_sensor_token": _token(world, "calibration", channel),
                        "timestamp": stamp,
                        "fileformat": "pcd" if channel == "LIDAR_TOP" else "jpg",
                        "is_key_frame": True,
                        "height": 0 if channel == "LIDAR_TOP" else height,
                        "width": 0 if channel == "LIDAR_TOP" else width,
                        "filename": file,
                        "prev": _token(world, channel, s, f - 1) if f else "",
                        "next": _token(world, channel, s, f + 1) if f < last else "",
                    }
                )
            token = _token(world, "LIDAR_TOP", s, f)
            file = f"lidarseg/{VERSION}/{token}_lidarseg.bin"
            tables["lidarseg"].append({"token": token, "sample_data_token": token, "filename": file})
    return tables


def write_nuscenes(root: Path, world: SyntheticWorld, workers: int = 0) -> None:
    """Write the world under `root` in the nuScenes layout, version `v1.0-synthetic`, with its own splits.

    A world of the same settings is left as it is. The tables come last, so that a killed run leaves nothing that looks
    like a data set. Raises InputError if another world is there.
    """
    if _already_there(root, world):
        return
    splits = {split: [f"scene-{9001 + s}" for s in scenes] for split, scenes in world.splits.items()}
    jobs = [(root, world, s, f) for part in world.splits.values() for s in part for f in range(world.frames_per_scene)]
    _run(_write_nuscenes_frame, jobs, workers, "built-in world (nuScenes layout)")
    _save_image(root / "maps" / "empty.png", np.zeros((10, 10), np.uint8))
    partial = root / f".{VERSION}"
    for name, table in (_tables(world) | {"splits": splits}).items():
        write_text(partial / f"{name}.json", json.dumps(table))
    shutil.rmtree(root / VERSION, ignore_errors=True)
    partial.rename(root / VERSION)
    _sign(root, world)


def write_film(root: Path, workers: int = 0) -> None:
    """Write the split `film` of the world in `root / "nuscenes"`: its `FilmWorld`, a nuScenes root in `root / "film"`.

    So the world's own files stay as they are, and no frame of it is trained on or validated on. Arguments and errors
    as for `write_nuscenes`.
    """
    world = read_json(root / "nuscenes" / "world.json") | {"frames_per_scene": FILM_FRAMES}
    write_nuscenes(root / FILM, FilmWorld(**world), workers)


def _write_kitti_frame(job: tuple[Path, SyntheticWorld, int, int, int]) -> None:
    folder, world, scene_index, frame, number = job
    scene = world.scene(scene_index)
    rng = np.random.default_rng([world.seed, scene_index, frame, 1])
    velodyne = _velodyne_pose(scene, frame)
    points, intensity, _, material = _scan(scene, velodyne, world.azimuths, (-24.8, 2.0), rng)
    _save_array(folder / "velodyne" / f"{number:06d}.bin", np.column_stack((points, intensity)).astype(np.float32))
    _save_array(folder / "labels" / f"{number:06d}.label", KITTI_LABEL[material])
    p2 = _kitti_p2(world.image_scale)
    intrinsics, shift = p2[:, :3], np.linalg.solve(p2[:, :3], p2[:, 3])
    camera = velodyne @ np.linalg.inv(_pose(KITTI_TR[:, :3], KITTI_TR[:, 3] + shift))
    image, _ = _photograph(scene, camera, intrinsics, _size(KITTI_SIZE, world.image_scale))
    _save_image(folder / "image_2" / f"{number:06d}.png", image)


def _velodyne_pose(scene: Scene, frame: int) -> np.ndarray:
    return _ego_pose(scene, frame * SECONDS) @ _pose(np.eye(3), (0, 0, KITTI_HEIGHT))


def _kitti_p2(scale: float) -> np.ndarray:
    p2 = KITTI_P2.copy()
    p2[:2] *= scale
    p2[:2, 2] += 0.5 * scale - 0.5
    return p2


def write_kitti(root: Path, world: SyntheticWorld, workers: int = 0) -> None:
    """Write the world under `root` in the SemanticKITTI layout: a train scene a sequence, held-out scenes all in 08.

    The frames get their final place at the very end, so that a killed run leaves nothing that looks like a data set.
    Raises InputError if another world or data set is there.
    """
    if _already_there(root, world):
        return
    if (root / "dataset").exists():
        raise InputError(f"{root} holds another data set; remove it or choose another --root.")
    if world.train_scenes > 10:
        raise InputError(f"SemanticKITTI has 10 training sequences, `train_scenes` asks for {world.train_scenes}.")
    train = [f"{i:02d}" for i in range(11) if i != 8][: world.train_scenes]
    sequences = {name: [i] for i, name in enumerate(train)}
    sequences["08"] = list(range(world.train_scenes, world.train_scenes + world.val_scenes))
    jobs, partial = [], root / ".dataset"
    shutil.rmtree(partial, ignore_errors=True)
    for name, scenes in sequences.items():
        frames = [(s, f) for s in scenes for f in range(world.frames_per_scene)]
        folder = partial / "sequences" / name
        jobs += [(folder, world, s, f, number) for number, (s, f) in enumerate(frames)]
    _run(_write_kitti_frame, jobs, workers, "built-in world (SemanticKITTI layout)")
    tr = _pose(KITTI_TR[:, :3], KITTI_TR[:, 3])
    p2 = _kitti_p2(world.image_scale)
    calibration = {f"P{i}": p2 for i in range(4)} | {"Tr": KITTI_TR}
    for name, scenes in sequences.items():
        folder = partial / "sequences" / name
        frames = [(world.scene(s), f) for s in scenes for f in range(world.frames_per_scene)]
        start = np.linalg.inv(_velodyne_pose(*frames[0]))
        poses = [tr @ start @ _velodyne_pose(scene, f) @ np.linalg.inv(tr) for scene, f in frames]
        texts = {
            "poses.txt": "".join(_numbers(pose[:3]) + "\n" for pose in poses),
            "times.txt": "".join(f"{i * SECONDS:e}\n" for i in range(len(frames))),
            "calib.txt": "".join(f"{key}: {_numbers(matrix)}\n" for key, matrix in calibration.items()),
        }
        for file, text in texts.items():
            write_text(folder / file, text)
    partial.rename(root / "dataset")
    _sign(root, world)


def _numbers(matrix: np.ndarray) -> str:
    return " ".join(f"{value:.12e}" for value in matrix.ravel())


def _already_there(root: Path, world: SyntheticWorld) -> bool:
    path = root / "world.json"
    if not path.exists():
        return False
    if json.loads(path.read_text()) != asdict(world):
        raise InputError(f"{root} holds a built-in world of other settings; remove it or choose another --root.")
    return True


def _sign(root: Path, world: SyntheticWorld) -> None:
    write_text(root / "world.json", json.dumps(asdict(world)))


def _run(work, jobs: list, workers: int, title: str) -> None:
    progress = {"total": len(jobs), "desc": title, "unit": "frame"}
    if workers == 0:
        for _ in Progress(map(work, jobs), **progress):
            pass
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read by the new processes: one core each
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in Progress(pool.map(work, jobs), **progress):
            pass
