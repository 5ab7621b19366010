"""nuScenes in its official folder layout, read without the devkit: LIDAR_TOP keyframes, six cameras, lidarseg."""

import hashlib
import json
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.disk import (
    InputError,
    atomic_write,
    inside,
    names_inside,
    read_array,
    read_points,
    read_text,
    require_folder,
    still_there,
)
from data.frame import Frame, Pairs, read_view
from data.labels import CLASSES, to_train_ids
from data.projection import Rigid, project
from data.splits import NUSCENES

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
_SENSORS = ("LIDAR_TOP", *CAMERAS)
_TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "lidarseg")
_INDEX_FORMAT = 1  # raise it when the arrays of `_build_index` change
_SLOW_TABLES = 100_000_000  # bytes of JSON; above it a user should be told what he is waiting for

Index = dict[str, np.ndarray]  # see _build_index


class NuScenes:
    """One split of nuScenes (a `data.frame.Reader`): keyframes, six cameras, 16 classes.

    Scenes come in the order of the `scene` table, keyframes in time order; a frame's id is its lidar token, a view's
    token that of its camera image (both sample_data), a frame's pose leads to the data set's world.

    The tables are parsed once; a compact index of them is kept and made again when their sizes or times change.

    Args:
        root: the folder that holds the `v1.0-*` tables, `samples` and `lidarseg`.
        split: train, val, test, mini_train, mini_val, pretrain (600 train scenes), pretrain_val (SLidR's mini-val, the
            other 100), all, or a name in `<root>/<version>/splits.json` ({"name": [scene names]}), which goes first.
        version: the folder of the tables; None = the one that holds most of the split; for `all`, all of them.
        index_cache: file of the index; None = output/index/nuscenes-<version>-<hash of the root>.npz.

    Raises InputError if tables are missing or inconsistent, point outside the root, or have no scene of the split.
    """

    name = "nuscenes"
    classes = CLASSES[name]
    intensity_offset = 0.0  # intensities are stored as 0 to 255 and used so

    def __init__(self, root: str | Path, split: str, version: str | None = None, index_cache: str | Path | None = None):
        self._root = require_folder(root, "nuScenes", "give the folder that holds the `v1.0-*` tables and `samples`.")
        chosen = _choose_tables(self._root, split, version)
        parts = []
        for folder, scenes in chosen.items():
            index = _cached_index(folder, index_cache)
            kept = np.flatnonzero(np.isin(index["scene"], np.array(scenes)))
            parts.append({name: values[kept] for name, values in index.items()})
        self._index = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not len(self._index["scene"]):
            raise InputError(
                f"the scenes of the split `{split}` in {', '.join(map(str, chosen))} have no keyframe; choose another "
                "split."
            )
        self.scenes: list[str] = self._index["scene"].tolist()
        self.ids = [token.decode() for token in self._index["token"][:, 0]]

    def __len__(self) -> int:
        return len(self.ids)

    def image_files(self) -> list[tuple[str, Path]]:
        """(token, file) of every camera image of the split."""
        tokens, paths = (self._index[name][:, 1:].ravel() for name in ("token", "path"))
        return [(token.decode(), self._file(path)) for token, path in zip(tokens, paths, strict=True)]

    def read(self, index: int, images: bool = True, labels: bool = True, shrink: int = 1) -> Frame:
        """Keyframe `index` of the split; see `data.frame.Reader.read`.

        Labels are None where the tables name no lidarseg file. Raises InputError for a missing or broken file, or for
        one outside the root (see `data.disk.inside`), and DataGone if the folder of the scans is gone.
        """
        with still_there(self._root / self._index["path"][index, 0].decode().split("/")[0]):
            return self._read(index, images, labels, shrink)

    def _read(self, index: int, images: bool, labels: bool, shrink: int) -> Frame:
        row = {name: values[index] for name, values in self._index.items()}
        mounts = [Rigid.from_quaternion(mount[:4], mount[4:]) for mount in row["mount"]]
        egos = [Rigid.from_quaternion(ego[:4], ego[4:]) for ego in row["ego"]]
        points = read_points(self._file(row["path"][0]), columns=5)  # the fifth is the laser's number
        frame = Frame(id=self.ids[index], points=points, pose=egos[0].matrix() @ mounts[0].matrix())
        if labels and row["labels"]:
            file = self._file(row["labels"])
            frame.labels = to_train_ids(read_array(file, "u1", rows=len(points)), self.name, file)
        if images:
            world = egos[0].apply(mounts[0].apply(points[:, :3].T)).T  # alike for all cameras
            pairs = []
            for i, camera in enumerate(CAMERAS, 1):
                view = read_view(camera, row["token"][i].decode(), self._file(row["path"][i]), shrink)
                frame.cameras.append(view)
                point, y, x = project(world, [], [egos[i], mounts[i]], row["intrinsics"][i - 1], view.size)
                pairs.append(Pairs(point, np.full_like(point, i - 1), y, x))
            frame.pairs = Pairs.concatenate(pairs)
        return frame

    def _file(self, path: bytes) -> Path:
        return inside(self._root, path.decode())


def _choose_tables(root: Path, split: str, version: str | None) -> dict[Path, list[str]]:
    """The folders of tables to read, and the scenes of the split to take from each; several only for `all`."""
    if version is None:
        folders = sorted(file.parent for file in root.glob("v1.0-*/scene.json"))
        if not folders:
            raise InputError(f"{root} holds no nuScenes tables (`v1.0-*/scene.json`): give the folder that does.")
    else:
        folders = [require_folder(root / version, "nuScenes tables", "choose another version.")]
    splits = {folder: _splits(folder) for folder in folders}
    offers = "; ".join(
        f"{folder.name} has {', '.join(f'{name} ({len(scenes)} scenes)' for name, scenes in splits[folder].items())}"
        for folder in folders
    )
    holders = [folder for folder in folders if split in splits[folder]]
    if not holders:
        raise InputError(f"{root} has no scene of the split `{split}`; choose one that it has: {offers}.")
    # v1.0-trainval holds the scenes of v1.0-mini, too: of equals take the smaller, and each scene once
    holders.sort(key=lambda f: (len(splits[f][split]), -len(splits[f]["all"])), reverse=True)
    if split != "all":
        return {holders[0]: splits[holders[0]][split]}
    chosen, taken = {}, set()
    for folder in holders:
        chosen[folder] = [scene for scene in splits[folder][split] if scene not in taken]
        taken.update(chosen[folder])
    return chosen


def _splits(folder: Path) -> dict[str, list[str]]:
    """Every split with a scene in the tables, and these scenes."""
    try:
        present = [scene["name"] for scene in _table(folder, "scene")]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'scene.json'} is no table of scenes with names; download it again.") from error
    custom = {}
    if (folder / "splits.json").exists():
        custom = _json(folder / "splits.json")
        if not isinstance(custom, dict) or not all(_is_list_of_names(scenes) for scenes in custom.values()):
            raise InputError(f'{folder / "splits.json"} must be of the form {{"split": ["scene", ...], ...}}.')
    splits = {name: set(scenes) for name, scenes in ({"all": present} | NUSCENES | custom).items()}
    there = {name: [scene for scene in present if scene in scenes] for name, scenes in splits.items()}
    return {name: scenes for name, scenes in there.items() if scenes}


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _cached_index(folder: Path, cache: str | Path | None) -> Index:
    """The index of the tables in `folder`, from the cache file if that is up to date, else built and put there."""
    if cache is None:
        path_hash = hashlib.sha256(str(folder.parent.resolve()).encode()).hexdigest()[:16]
        cache = Path("output/index") / f"nuscenes-{folder.name}-{path_hash}.npz"
    files = [file for name in _TABLES if (file := folder / f"{name}.json").exists()]
    stamp = json.dumps([_INDEX_FORMAT] + [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    try:
        with np.load(cache) as stored:
            if str(stored["stamp"]) == stamp:
                return {name: stored[name] for name in stored.files if name != "stamp"}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile):
        pass  # no cache yet, or not ours
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
    """Read the tables; F keyframes, 7 sensors (lidar, then `CAMERAS`), strings as bytes so that they stay small.

    scene [F] str, token [F, 7], path [F, 7], labels [F] (empty = none); mount (sensor -> vehicle) and ego (vehicle ->
    world, at the sensor's own time) [F, 7, 7] float64, a quaternion (w, x, y, z) and a translation in metres;
    intrinsics [F, 6, 3, 3] float64.
    """
    try:
        channels = {row["token"]: row["channel"] for row in _table(folder, "sensor") if row["channel"] in _SENSORS}
        mounts = {row["token"]: row for row in _table(folder, "calibrated_sensor") if row["sensor_token"] in channels}
        readings = _table(
            folder, "sample_data", lambda row: row["is_key_frame"] and row["calibrated_sensor_token"] in mounts
        )
        used = {row["ego_pose_token"] for row in readings}
        egos = {row["token"]: row for row in _table(folder, "ego_pose", lambda row: row["token"] in used)}
        scenes = {row["token"]: (i, row["name"]) for i, row in enumerate(_table(folder, "scene"))}
        samples = sorted(_table(folder, "sample"), key=lambda row: (scenes[row["scene_token"]][0], row["timestamp"]))
        labels = {}
        if (folder / "lidarseg.json").exists():
            labels = {row["sample_data_token"]: row["filename"] for row in _table(folder, "lidarseg")}

        by_sample = defaultdict(dict)
        for row in readings:
            by_sample[row["sample_token"]][channels[mounts[row["calibrated_sensor_token"]]["sensor_token"]]] = row
        for sample in samples:
            if missing := set(_SENSORS) - set(by_sample[sample["token"]]):
                raise InputError(
                    f"the keyframe {sample['token']} in {folder} lacks {', '.join(sorted(missing))}: every keyframe "
                    "needs the lidar and all six cameras; complete the tables or leave it out of them."
                )
        rows = [[by_sample[sample["token"]][channel] for channel in _SENSORS] for sample in samples]

        sensors = [[mounts[row["calibrated_sensor_token"]] for row in frame] for frame in rows]
        index = {
            "scene": np.array([scenes[sample["scene_token"]][1] for sample in samples], str),
            "token": _encoded([[_plain_name(row["token"], folder) for row in frame] for frame in rows]),
            "path": _encoded([[_inside(row["filename"], folder) for row in frame] for frame in rows]),
            "labels": _encoded([_inside(labels.get(frame[0]["token"], ""), folder) for frame in rows]),
            "mount": np.array([[_motion(sensor) for sensor in frame] for frame in sensors]),
            "ego": np.array([[_motion(egos[row["ego_pose_token"]]) for row in frame] for frame in rows]),
            "intrinsics": np.array([[sensor["camera_intrinsic"] for sensor in frame[1:]] for frame in sensors], float),
        }
        if index["intrinsics"].shape[1:] != (6, 3, 3) or not np.isfinite(index["intrinsics"]).all():
            raise ValueError("camera_intrinsic is not 3 x 3 finite numbers")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the tables in {folder} do not fit together ({error}); download them again.") from error
    return index


def _json(file: Path, keep: Callable[[dict], object] | None = None):
    try:
        return json.loads(read_text(file), object_hook=keep)
    except (ValueError, RecursionError) as error:  # beside JSON's own errors, numbers of thousands of digits
        raise InputError(f"{file} is no JSON ({error}); download it again.") from error


def _table(folder: Path, name: str, keep: Callable[[dict], bool] = lambda row: True) -> list[dict]:
    """The rows of a table that satisfy `keep`; the rest is thrown away while parsing, for there are millions."""
    rows = _json(folder / f"{name}.json", lambda row: row if keep(row) else None)
    return [row for row in rows if row is not None]


def _motion(row: dict) -> list[float]:
    """Quaternion and translation of a row, seven numbers."""
    motion = [*map(float, row["rotation"]), *map(float, row["translation"])]
    if len(motion) != 7 or not np.isfinite(motion).all() or abs(np.linalg.norm(motion[:4]) - 1) > 0.01:
        raise ValueError(f"{row['token']} has no unit quaternion and translation")
    return motion


def _encoded(strings: list) -> np.ndarray:
    return np.char.encode(np.array(strings, str), "utf-8")


def _plain_name(token: str, folder: Path) -> str:
    """`token`, which becomes a file's name elsewhere."""
    if not re.fullmatch(r"[\w-]+", token):
        raise InputError(f"the tables in {folder} have the token {token!r}, no plain name; download them again.")
    return token


def _inside(file: str, folder: Path) -> str:
    """`file`, relative to the root and staying inside it."""
    if not names_inside(file):
        raise InputError(f"the tables in {folder} name the file {file!r} outside the data set; download them again.")
    return file
