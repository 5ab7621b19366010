"""The built-in world on disk, in the official layouts of nuScenes, SemanticKITTI and KITTI's object benchmark."""

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

from data.boxes import Boxes, count_points, move_boxes
from data.datasets.kitti_object import CAMERA, label_line, rectangles, to_camera
from data.datasets.synthetic.objects import objects
from data.datasets.synthetic.render import KITTI_LABEL, NUSCENES_LABEL
from data.datasets.synthetic.sensors import (
    FILM,
    FILM_FRAMES,
    IMAGE_SIZE,
    KITTI_P2,
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
from data.projection import Rigid


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
    p2 = kitti_p2(world.image_scale)
    points, material, image = _kitti_frame(world, scene_index, frame, p2)
    _save_array(folder / "velodyne" / f"{number:06d}.bin", points)
    _save_array(folder / "labels" / f"{number:06d}.label", KITTI_LABEL[material])
    _save_image(folder / "image_2" / f"{number:06d}.png", image)


def _kitti_frame(
    world: SyntheticWorld, scene_index: int, frame: int, p2: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points `[N, 4]` float32 of a velodyne, their materials, and the picture of the left colour camera."""
    scene = world.scene(scene_index)
    rng = np.random.default_rng([world.seed, scene_index, frame, 1])
    velodyne = velodyne_pose(scene, frame)
    points, intensity, _, material = scan(scene, velodyne, world.azimuths, (-24.8, 2.0), rng)
    intrinsics, shift = p2[:, :3], np.linalg.solve(p2[:, :3], p2[:, 3])
    camera = velodyne @ np.linalg.inv(as_pose(KITTI_TR[:, :3], KITTI_TR[:, 3] + shift))
    image, _ = photograph(scene, camera, intrinsics, scaled(KITTI_SIZE, world.image_scale))
    return np.column_stack((points, intensity)).astype(np.float32), material, image


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


# What the types of KITTI's object benchmark are in the built-in world, by the raw label of nuScenes
_KITTI_TYPES = {17: "Car", 23: "Truck", 16: "Truck", 22: "Misc", 18: "Misc", 2: "Pedestrian", 14: "Cyclist"}
_KITTI_TYPES[21] = "Cyclist"  # a motorcycle


def _write_object_frame(job: tuple[Path, SyntheticWorld, int, int, int]) -> None:
    folder, world, scene_index, frame, number = job
    points, _, image = _kitti_frame(world, scene_index, frame, kitti_p2(world.image_scale))
    # in the size of KITTI's, whose levels of difficulty are counted in pixels
    image = np.asarray(Image.fromarray(image).resize(KITTI_SIZE[::-1], Image.Resampling.BILINEAR))
    _save_array(folder / "velodyne" / f"{number:06d}.bin", points)
    _save_image(folder / CAMERA / f"{number:06d}.png", image)
    rows = {f"P{i}": KITTI_P2 for i in range(4)} | {"R0_rect": np.eye(3), "Tr_velo_to_cam": KITTI_TR}
    calibration = "".join(f"{key}: {_numbers(matrix)}\n" for key, matrix in rows.items())
    write_text(folder / "calib" / f"{number:06d}.txt", calibration)
    velodyne = np.linalg.inv(velodyne_pose(world.scene(scene_index), frame))
    boxes = objects(world.scene(scene_index))
    boxes.centre = (boxes.centre + np.linalg.solve(velodyne[:3, :3], velodyne[:3, 3])).astype(np.float32)
    boxes = count_points(points, move_boxes(boxes, velodyne[:3, :3]))
    write_text(folder / "label_2" / f"{number:06d}.txt", _object_labels(boxes))


def _object_labels(boxes: Boxes) -> str:
    """The lines of label_2 of the boxes that have points and are in the image; the fewer points, the more occluded."""
    tr = Rigid(KITTI_TR[:, :3], KITTI_TR[:, 3])
    (location, turn), lines = to_camera(boxes, tr), ""
    whole, cut = (rectangles(boxes, tr, KITTI_P2, size) for size in (None, KITTI_SIZE))
    areas, seen = ((r[:, 2] - r[:, 0]) * (r[:, 3] - r[:, 1]) for r in (whole, cut))
    for i in np.flatnonzero((boxes.points > 0) & (location[:, 2] > 1) & (seen > 0)):
        kind = _KITTI_TYPES.get(int(boxes.label[i]))
        occluded, alpha = int(np.sum(boxes.points[i] < (3, 10))), turn[i] - np.arctan2(location[i, 0], location[i, 2])
        place = *cut[i], *boxes.size[i, ::-1], *location[i], turn[i]
        lines += label_line(kind, [1 - seen[i] / areas[i], occluded, alpha, *place]) if kind else ""
    return lines


def write_kitti_object(root: Path, world: SyntheticWorld, workers: int = 0) -> None:
    """Write the world under `root` in the layout of KITTI's object benchmark, with lists train, val and trainval.

    Images are enlarged to KITTI's size. The frames get their final place at the very end, as in `write_kitti`. Raises
    InputError if another world or data set is there.
    """
    if _already_there(root, world):
        return
    if (root / "training").exists():
        raise InputError(f"{root} holds another data set; remove it or choose another --root.")
    frames = {
        split: [(s, f) for s in scenes for f in range(world.frames_per_scene)] for split, scenes in world.splits.items()
    }
    partial, both = root / ".training", frames["train"] + frames["val"]
    shutil.rmtree(partial, ignore_errors=True)
    jobs = [(partial, world, s, f, number) for number, (s, f) in enumerate(both)]
    _run(_write_object_frame, jobs, workers, "built-in world (KITTI object layout)")
    first, numbers = len(frames["train"]), [f"{i:06d}\n" for i in range(len(both))]
    lists = {"train": numbers[:first], "val": numbers[first:], "trainval": numbers}
    for name, part in lists.items():
        write_text(root / "ImageSets" / f"{name}.txt", "".join(part))
    partial.rename(root / "training")
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
