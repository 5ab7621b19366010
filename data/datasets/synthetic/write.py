"""The built-in world on disk, in the official nuScenes and SemanticKITTI layouts."""

import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from data.datasets.synthetic.render import KITTI_LABEL, NUSCENES_LABEL
from data.datasets.synthetic.sensors import (
    FILM,
    FILM_FRAMES,
    IMAGE_SIZE,
    KITTI_SIZE,
    KITTI_TR,
    LIDAR,
    SECONDS,
    VERSION,
    FilmWorld,
    SyntheticWorld,
    as_pose,
    camera_matrix,
    ego_pose,
    kitti_p2,
    make_token,
    photograph,
    quaternion_matrix,
    scaled,
    scan,
    sensor_files,
    velodyne_pose,
)
from data.datasets.synthetic.tables import make_tables
from data.files import InputError, atomic_write, read_json, write_text
from data.progress import Progress


def _save_array(path: Path, values: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(values.tobytes())


def _save_image(path: Path, image: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        options = {"format": "JPEG", "quality": 92} if path.suffix == ".jpg" else {"format": "PNG"}
        Image.fromarray(image).save(temporary, **options)


def _write_nuscenes_frame(job: tuple[Path, SyntheticWorld, int, int]) -> None:
    root, world, scene_index, frame = job
    scene, names = world.scene(scene_index), sensor_files(world, scene_index, frame)
    rng = np.random.default_rng([world.seed, scene_index, frame])
    name, _, seconds = names["LIDAR_TOP"]
    pose = ego_pose(scene, seconds) @ as_pose(quaternion_matrix(LIDAR[1]), LIDAR[0])
    points, intensity, ring, material = scan(scene, pose, world.azimuths, (-30.0, 10.0), rng)
    rows = np.column_stack((points, np.round(intensity * 255), ring)).astype(np.float32)
    _save_array(root / name, rows)
    token = make_token(world, "LIDAR_TOP", scene_index, frame)
    _save_array(root / "lidarseg" / VERSION / f"{token}_lidarseg.bin", NUSCENES_LABEL[material])
    for camera, (translation, rotation, _, _) in world.cameras.items():
        name, _, seconds = names[camera]
        pose = ego_pose(scene, seconds) @ as_pose(quaternion_matrix(rotation), translation)
        size = scaled(IMAGE_SIZE, world.image_scale)
        _save_image(root / name, photograph(scene, pose, camera_matrix(camera, world.image_scale), size)[0])


def write_nuscenes(root: Path, world: SyntheticWorld, workers: int = 0) -> None:
    """Write the world under `root` in the nuScenes layout, version `v1.0-synthetic`, with its own splits.

    A world of the same settings is left as it is, but for its tables if they are of a time before there were boxes. The
    tables come last, so that a killed run leaves nothing that looks like a data set. Raises InputError if another world
    is there.
    """
    there = _already_there(root, world)
    if there and has_annotations(root):
        return
    splits = {split: [f"scene-{9001 + s}" for s in scenes] for split, scenes in world.splits.items()}
    jobs = [(root, world, s, f) for part in world.splits.values() for s in part for f in range(world.frames_per_scene)]
    if there:
        print(f"the built-in world in {root} has no boxes yet: its tables are written again.", file=sys.stderr)
    else:
        _run(_write_nuscenes_frame, jobs, workers, "built-in world (nuScenes layout)")
    _save_image(root / "maps" / "empty.png", np.zeros((10, 10), np.uint8))
    partial = root / f".{VERSION}"
    for name, table in (make_tables(root, world) | {"splits": splits}).items():
        write_text(partial / f"{name}.json", json.dumps(table))
    shutil.rmtree(root / VERSION, ignore_errors=True)
    partial.rename(root / VERSION)
    _sign(root, world)


def has_annotations(root: Path) -> bool:
    """Whether the tables under `root` have boxes; those written by earlier versions have none."""
    file = root / VERSION / "sample_annotation.json"
    return file.is_file() and file.stat().st_size > len("[]")


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
    velodyne = velodyne_pose(scene, frame)
    points, intensity, _, material = scan(scene, velodyne, world.azimuths, (-24.8, 2.0), rng)
    _save_array(folder / "velodyne" / f"{number:06d}.bin", np.column_stack((points, intensity)).astype(np.float32))
    _save_array(folder / "labels" / f"{number:06d}.label", KITTI_LABEL[material])
    p2 = kitti_p2(world.image_scale)
    intrinsics, shift = p2[:, :3], np.linalg.solve(p2[:, :3], p2[:, 3])
    camera = velodyne @ np.linalg.inv(as_pose(KITTI_TR[:, :3], KITTI_TR[:, 3] + shift))
    image, _ = photograph(scene, camera, intrinsics, scaled(KITTI_SIZE, world.image_scale))
    _save_image(folder / "image_2" / f"{number:06d}.png", image)


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
    tr = as_pose(KITTI_TR[:, :3], KITTI_TR[:, 3])
    p2 = kitti_p2(world.image_scale)
    calibration = {f"P{i}": p2 for i in range(4)} | {"Tr": KITTI_TR}
    for name, scenes in sequences.items():
        folder = partial / "sequences" / name
        frames = [(world.scene(s), f) for s in scenes for f in range(world.frames_per_scene)]
        start = np.linalg.inv(velodyne_pose(*frames[0]))
        poses = [tr @ start @ velodyne_pose(scene, f) @ np.linalg.inv(tr) for scene, f in frames]
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
