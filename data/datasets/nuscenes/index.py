"""The tables of nuScenes as a compact index: which files, mounts and poses make a keyframe."""

import hashlib
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.files import InputError, atomic_write, names_inside, open_file, printable, read_json, require_intact
from data.frame import FARTHEST
from data.projection import Rigid, is_camera

LIDAR = "LIDAR_TOP"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
_TABLES = (
    *("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "lidarseg", "category"),
    *("instance", "sample_annotation"),
)
_TEXTS = (
    *("token", "name", "filename", "channel", "sample_token", "scene_token", "sensor_token", "sample_data_token"),
    *("instance_token", "category_token"),
)
_FORMAT = 5  # raise it when the arrays of `_build_index` change
_SLOW_TABLES = 100_000_000  # bytes of JSON; above it users should be told what they are waiting for

Index = dict[str, np.ndarray]  # see _build_index


def cached_index(folder: Path, cache: str | Path | None) -> Index:
    """The index of the tables in `folder`, from the cache file if that is up to date, else built and put there."""
    if cache is None:
        path_hash = hashlib.sha256(str(folder.parent.resolve()).encode()).hexdigest()[:16]
        cache = Path("output/index") / f"nuscenes-{folder.name}-{path_hash}.npz"
    files = [file for name in _TABLES if (file := folder / f"{name}.json").exists()]
    stamp = json.dumps([_FORMAT] + [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    try:
        with open_file(cache) as file:
            require_intact(file)
            file.seek(0)
            stored = np.load(file)
            if str(stored["stamp"]) == stamp:
                return {name: stored[name] for name in stored.files if name != "stamp"}
    except Exception:  # no cache yet, or not ours: zipfile and NumPy raise a dozen types for these
        pass
    if sum(file.stat().st_size for file in files) > _SLOW_TABLES:
        print(f"indexing {folder}, once, in up to a minute ...", file=sys.stderr, flush=True)
    index = _build_index(folder)
    try:
        with atomic_write(cache) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamp=np.array(stamp), **index)
    except InputError as error:
        print(f"the index of {folder} is not kept: {error}", file=sys.stderr)
    return index


def _build_index(folder: Path) -> Index:
    """Read the tables of F keyframes and S sensors: LIDAR_TOP, then every camera. Strings are bytes, which are small.

    categories [256] str, by the number that labels use, empty = none ([0] without lidarseg); sensors [S] str; scene [F]
    str; labels [F], empty = none; token and path [F, S], empty = the keyframe lacks this camera; mount (sensor ->
    vehicle) and ego (vehicle -> world, at the sensor's own time) [F, S, 7] float64, a quaternion (w, x, y, z) and a
    translation in metres; intrinsics [F, S, 3, 3] float64, the identity for the lidar; sample [F], the keyframe's own
    token. Of the annotations (`_boxes`):
    box_names [C] str, boxes [A, 8], first_box and last_box [F], box_fault [F].
    """
    try:
        channels = {row["token"]: row["channel"] for row in table(folder, "sensor") if _is_used(row)}
        sensors = [LIDAR, *dict.fromkeys(channel for channel in channels.values() if channel != LIDAR)]
        mounts = {row["token"]: row for row in table(folder, "calibrated_sensor") if row["sensor_token"] in channels}
        readings = table(
            folder, "sample_data", lambda row: row["is_key_frame"] and row["calibrated_sensor_token"] in mounts
        )
        used = {row["ego_pose_token"] for row in readings}
        egos = {row["token"]: row for row in table(folder, "ego_pose", lambda row: row["token"] in used)}
        scenes = {row["token"]: (i, row["name"]) for i, row in enumerate(table(folder, "scene"))}
        samples = sorted(table(folder, "sample"), key=lambda row: (scenes[row["scene_token"]][0], row["timestamp"]))
        labels = {}
        if (folder / "lidarseg.json").exists():
            labels = {row["sample_data_token"]: row["filename"] for row in table(folder, "lidarseg")}

        by_sample = defaultdict(dict)
        for row in readings:
            by_sample[row["sample_token"]][channels[mounts[row["calibrated_sensor_token"]]["sensor_token"]]] = row
        for sample in samples:
            if LIDAR not in by_sample[sample["token"]]:
                raise InputError(
                    f"the keyframe {sample['token']} in {folder} lacks {LIDAR}, which every keyframe needs; complete "
                    "the tables or leave it out of them."
                )
        rows = [[by_sample[sample["token"]].get(channel) for channel in sensors] for sample in samples]
        if not rows:
            raise ValueError("sample.json has no keyframe")

        def of_each(value: Callable[[dict], object], missing: object) -> list[list]:
            return [[missing if row is None else value(row) for row in frame] for frame in rows]

        no_motion, no_camera = [1.0, *[0.0] * 6], np.eye(3).tolist()
        intrinsics = {
            token: no_camera if channels[row["sensor_token"]] == LIDAR else _intrinsics(row)
            for token, row in mounts.items()
        }
        index = {
            "categories": np.array(_categories(folder), str),
            "sensors": np.array(sensors, str),
            "scene": np.array([scenes[sample["scene_token"]][1] for sample in samples], str),
            "sample": np.array([sample["token"] for sample in samples], str),
            "token": _encoded(of_each(lambda row: _plain_name(row["token"], folder), "")),
            "path": _encoded(of_each(lambda row: _inside(row["filename"], folder), "")),
            "labels": _encoded([_inside(labels.get(frame[0]["token"], ""), folder) for frame in rows]),
            "mount": np.array(of_each(lambda row: _motion(mounts[row["calibrated_sensor_token"]]), no_motion)),
            "ego": np.array(of_each(lambda row: _motion(egos[row["ego_pose_token"]]), no_motion)),
            "intrinsics": np.array(of_each(lambda row: intrinsics[row["calibrated_sensor_token"]], no_camera)),
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the tables in {folder} do not fit together ({error}); download them again.") from error
    try:
        index |= _boxes(folder, [sample["token"] for sample in samples], index["ego"][:, 0], index["mount"][:, 0])
    except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:  # whoever asks for boxes will be told
        fault, none = printable(f"the annotations cannot be read: {error}", 300), np.zeros(len(samples), np.int64)
        index |= {"box_names": np.array([], str), "boxes": np.zeros((0, 8), np.float32)}
        index |= {"first_box": none, "last_box": none, "box_fault": np.full(len(samples), fault)}
    return index


def _boxes(folder: Path, samples: list[str], egos: np.ndarray, mounts: np.ndarray) -> Index:
    """The annotations of F keyframes in the frame of their lidar, at its own time.

    Those without a lidar or radar point are left out, as nuScenes' evaluation does.

    Args:
        samples: tokens of the keyframes.
        egos, mounts: [F, 7] of the lidar, see `_build_index`.

    Returns:
        box_names: [C] str, categories; none if the tables have no annotations.
        boxes: [A, 8] float32: centre, length, width and height in metres, yaw, row of the category.
        first_box, last_box: [F] int64: those of a frame are boxes[first:last].
        box_fault: [F] str: what is wrong with one of the frame's annotations, empty = nothing.
    """
    rows, names = defaultdict(list), []
    if all((folder / f"{name}.json").exists() for name in ("sample_annotation", "instance", "category")):
        categories = {row["token"]: row["name"][:80] for row in table(folder, "category")}
        kinds = {row["token"]: categories[row["category_token"]] for row in table(folder, "instance")}
        names = sorted(set(kinds.values()))
        for row in table(folder, "sample_annotation", lambda row: row["num_lidar_pts"] + row["num_radar_pts"] > 0):
            rows[row["sample_token"]].append((names.index(kinds[row["instance_token"]]), row))
        names = names if rows else []
    boxes, faults, ends = [], [], [0]
    for sample, ego, mount in zip(samples, egos, mounts, strict=True):
        lidar = Rigid.from_quaternion(ego[:4], ego[4:]).matrix() @ Rigid.from_quaternion(mount[:4], mount[4:]).matrix()
        inverse, fault = np.linalg.inv(lidar), ""
        for kind, row in rows[sample]:
            try:
                boxes.append((*_placed(row, inverse), kind))
            except ValueError as error:
                fault = printable(f"the annotation {row['token']} is broken: {error}")
        faults.append(fault)
        ends.append(len(boxes))
    return {
        "box_names": np.array(names, str),
        "boxes": np.array(boxes, np.float32).reshape(-1, 8),
        "first_box": np.array(ends[:-1]),
        "last_box": np.array(ends[1:]),
        "box_fault": np.array(faults, str),
    }


def _placed(row: dict, inverse: np.ndarray) -> tuple[float, ...]:
    """Centre, length, width, height and yaw of an annotation, `inverse` [4, 4] of the lidar's pose leads there."""
    size, motion = np.array(row["size"], np.float64), _motion(row)
    if size.shape != (3,) or not (np.isfinite(size) & (size > 0)).all():
        raise ValueError("it has no three sizes above 0")
    placed = inverse @ Rigid.from_quaternion(motion[:4], motion[4:]).matrix()
    if not max(np.abs(placed[:3, 3]).max(), size.max()) <= FARTHEST:
        raise ValueError("it is a kilometre away, or as large")
    return *placed[:3, 3], size[1], size[0], size[2], math.atan2(placed[1, 0], placed[0, 0])


def _categories(folder: Path) -> list[str]:
    """The names of the categories by the number that labels use, "" = none; no names if there is no such table."""
    if not (folder / "category.json").exists() or not (folder / "lidarseg.json").exists():
        return []
    names = [""] * 256
    for row in table(folder, "category"):
        number, name = row.get("index"), row["name"][:80]  # without lidarseg, categories have no numbers
        if number is None:
            continue
        if number not in range(256) or names[number] not in ("", name):
            raise ValueError(f"category.json gives {name!r} the number {number!r}, which is no byte or another's")
        names[number] = name
    return names


def _is_used(sensor: dict) -> bool:
    """Whether a sensor is the lidar or a camera."""
    return sensor["channel"] in (LIDAR, *CAMERAS) or sensor.get("modality") == "camera"


def table(folder: Path, name: str, keep: Callable[[dict], bool] = lambda row: True) -> list[dict]:
    """The rows of a table that satisfy `keep`; the rest is dropped while parsing, because there are millions."""
    file = folder / f"{name}.json"
    rows = read_json(file, lambda row: row if keep(row) else None)
    rows = [row for row in rows if row is not None] if isinstance(rows, list) else [rows]
    for row in rows:
        texts = [row.get(key, "") for key in _TEXTS] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) and len(text) <= 1000 for text in texts):
            raise InputError(f"{file} has a row without short texts where these belong; download it again.")
    return rows


def _motion(row: dict) -> list[float]:
    """Quaternion and translation of a row, seven numbers."""
    motion = [*map(float, row["rotation"]), *map(float, row["translation"])]
    if len(motion) != 7 or not np.isfinite(motion).all() or abs(np.linalg.norm(motion[:4]) - 1) > 0.01:
        raise ValueError(f"{row['token']} has no unit quaternion and translation")
    return motion


def _intrinsics(row: dict) -> list[list[float]]:
    matrix = np.array(row["camera_intrinsic"], np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not is_camera(matrix):
        raise ValueError(f"camera_intrinsic is not 3 x 3 finite numbers of a camera in {row['token']}")
    return matrix.tolist()


def _encoded(strings: list) -> np.ndarray:
    return np.char.encode(np.array(strings, str), "utf-8")


def _plain_name(token: str, folder: Path) -> str:
    """`token`; raises InputError if it cannot name a file, as tokens do elsewhere."""
    if not re.fullmatch(r"[\w-]+", token):
        raise InputError(f"the tables in {folder} have the token {token!r}, no plain name; download them again.")
    return token


def _inside(file: str, folder: Path) -> str:
    """`file`; raises InputError if it is not a path inside the root."""
    if not names_inside(file):
        raise InputError(f"the tables in {folder} name the file {file!r} outside the data set; download them again.")
    return file
