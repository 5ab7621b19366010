"""nuScenes in its official folder layout, read without the devkit: LIDAR_TOP keyframes, cameras, lidarseg."""

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.boxes import Boxes, count_points
from data.datasets.dataset import OFFICIAL, DataSet, ReadOptions
from data.datasets.layout import cameras_of, choose_cameras, read_points, splits_there
from data.datasets.nuscenes.index import CAMERAS, LIDAR, Index, cached_index, table
from data.datasets.nuscenes.submission import NuScenesDetectionSubmission, NuScenesSubmission
from data.files import InputError, inside, read_array, require_folder, still_there
from data.frame import Frame, Needs, Pairs, read_view
from data.projection import Rigid, project


class NuScenes:
    """One split of nuScenes (a `data.datasets.dataset.Reader`): keyframes, six cameras, 16 classes.

    Scenes come in the order of the `scene` table, keyframes in time order; a frame's id is its lidar token, a view's
    token that of its camera image (both sample_data), a frame's pose leads to the data set's world.

    The tables are parsed once; a compact index of them is kept and made again when their sizes or times change.

    Args:
        root: the folder that holds the `v1.0-*` tables, `samples` and `lidarseg`.
        split: train, val, test, mini_train, mini_val, pretrain (600 train scenes), pretrain_val (SLidR's mini-val, the
            other 100), all, or a user's own: {"name": [scene names]} in `<root>/<version>/splits.json` goes first.
        options: by default the six official cameras are read, or, where the tables lack one of these, all that they
            have, which is said on stderr; scans have five columns.
        version: the folder of the tables; None = the one that holds most of the split; for `all`, all of them.
        index_cache: file of the index; None = output/index/nuscenes-<version>-<hash of the root>.npz.
        dataset: the record that names classes and splits, for other data in this layout; None = `RECORD`.

    Raises InputError if tables are missing or inconsistent, point outside the root, or have no scene of the split, if a
    camera does not exist, or if a keyframe lacks one of those to be read.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        options: ReadOptions = OFFICIAL,
        *,
        version: str | None = None,
        index_cache: str | Path | None = None,
        dataset: DataSet | None = None,
    ):
        self.dataset, self._options = dataset or RECORD, options
        self.intensity_scale, self.intensity_offset = options.intensity_scale, self.dataset.intensity_offset
        self._root = require_folder(root, "nuScenes", "give the folder that holds the `v1.0-*` tables and `samples`.")
        chosen = _choose_tables(self._root, split, version, self.dataset.splits)
        indices = [(cached_index(folder, index_cache), scenes) for folder, scenes in chosen.items()]
        where = ", ".join(map(str, chosen))
        self._cameras = _choose_cameras(options, [index["sensors"].tolist() for index, _ in indices], where)
        self._categories = [index["categories"].tolist() for index, _ in indices]
        self._boxes = [(index["box_names"].tolist(), index["boxes"]) for index, _ in indices]
        parts = [_part(index | {"tables": i}, scenes, self._cameras) for i, (index, scenes) in enumerate(indices)]
        self._index = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not len(self._index["scene"]):
            raise InputError(f"the scenes of the split `{split}` in {where} have no keyframe; choose another split.")
        missing = np.argwhere(self._index["token"] == b"")
        if len(missing):
            frame, sensor = missing[0]
            raise InputError(
                f"the keyframe {self._index['token'][frame, 0].decode()} in {where} lacks {self._cameras[sensor - 1]}: "
                "every keyframe needs all cameras that are read; complete the tables, leave it out of them, or read "
                "other cameras."
            )
        self.scenes: list[str] = self._index["scene"].tolist()
        self.labelled = (self._index["labels"] != b"").tolist()
        self.ids = [token.decode() for token in self._index["token"][:, 0]]
        self.samples: list[str] = self._index["sample"].tolist()  # the keyframes' own tokens

    def __len__(self) -> int:
        return len(self.ids)

    def image_files(self) -> list[tuple[str, Path]]:
        """(token, file) of every camera image of the split."""
        tokens, paths = (self._index[name][:, 1:].ravel() for name in ("token", "path"))
        return [(token.decode(), self._file(path)) for token, path in zip(tokens, paths, strict=True)]

    def read(self, index: int, needs: Needs, rng: np.random.Generator | None = None) -> Frame:
        """Keyframe `index` of the split (see `Reader.read`).

        Labels are None where the tables name no lidarseg file, boxes where they have no annotations. Raises InputError
        for a missing or broken file, or for one outside the root (see `data.files.inside`), and DataGone if the folder
        of the scans is gone.
        """
        with still_there(self._root / self._index["path"][index, 0].decode().split("/")[0]):
            return self._read(index, needs, rng)

    def pose(self, index: int) -> np.ndarray:
        """Lidar -> vehicle -> world at the scan's own time (see `Reader.pose`)."""
        ego, mount = (Rigid.from_quaternion(m[:4], m[4:]) for m in (self._index[k][index, 0] for k in ("ego", "mount")))
        return ego.matrix() @ mount.matrix()

    def _read(self, index: int, needs: Needs, rng: np.random.Generator | None) -> Frame:
        row = {name: values[index] for name, values in self._index.items()}
        points = read_points(self._file(row["path"][0]), 5, self._options)  # the fifth is the laser's number
        frame = Frame(self.ids[index], points, forward=(0.0, 1.0))
        if needs.labels and row["labels"]:
            file, categories = self._file(row["labels"]), self._categories[row["tables"]]
            raw = read_array(file, "u1", rows=len(points))
            if categories and self.dataset.categories:
                raw = _renumbered(raw, categories, self.dataset.categories, file)
            frame.labels = self.dataset.to_train_ids(raw, file)
        if needs.boxes:
            frame.boxes, frame.ignore = self._annotations(row, points)
        if needs.pose:
            frame.pose = self.pose(index)
        mounts, egos = ([Rigid.from_quaternion(m[:4], m[4:]) for m in row[name]] for name in ("mount", "ego"))
        cameras, pairs = cameras_of(frame.id, self._cameras, needs, rng), []
        if cameras:
            world = egos[0].apply(mounts[0].apply(points[:, :3].T)).T  # alike for all cameras
        for i, camera in enumerate(cameras):
            s = camera + 1
            token, file = row["token"][s].decode(), self._file(row["path"][s])
            view = read_view(self._cameras[camera], token, file, needs.shrink)
            frame.cameras.append(view)
            point, y, x = project(world, [], [egos[s], mounts[s]], row["intrinsics"][s], view.size)
            pairs.append(Pairs(point, np.full_like(point, i), y, x))
        frame.pairs = Pairs.concatenate(pairs)
        return frame

    def _annotations(self, row: Index, points: np.ndarray) -> tuple[Boxes | None, Boxes | None]:
        """The boxes of a keyframe, and those to ignore; None where its tables have no annotations at all."""
        names, rows = self._boxes[row["tables"]]
        if row["box_fault"]:
            raise InputError(
                f"{row['box_fault']} (sample_annotation.json, frame {row['token'][0].decode()}): download the tables "
                "again, or correct that row."
            )
        if not names:
            return None, None
        rows, dataset = rows[row["first_box"] : row["last_box"]], self.dataset
        detected = {dataset.categories[i]: [c] for c, _, raw in dataset.table if c in dataset.boxes for i in raw}

        def of(kinds: Mapping[str, Sequence[str]]) -> Boxes:
            """The boxes of some categories, once as each of the classes that these are given."""
            found = [(i, c) for i, kind in enumerate(rows[:, 7]) for c in kinds.get(names[int(kind)], ())]
            which, labels = [i for i, _ in found], [dataset.boxes.index(c) for _, c in found]
            return Boxes.of(rows[which, :3], rows[which, 3:6], rows[which, 6], labels)

        return count_points(points, of(detected)), of(_IGNORED)

    def _file(self, path: bytes) -> Path:
        return inside(self._root, path.decode())


def _renumbered(raw: np.ndarray, stored: list[str], known: tuple[str, ...], file: Path) -> np.ndarray:
    """Labels `[N]` uint8 that number the `stored` names, by the numbers of the `known` ones. Raises InputError."""
    numbers = {name: i for i, name in enumerate(known)}
    if strange := [name for name in stored if name and name not in numbers]:
        raise InputError(
            f"category.json names {strange[0]!r}, none of the data set's categories ({', '.join(known[:3])}, ...): "
            "call it as the one that it is."
        )
    table = np.array([numbers.get(name, len(known)) for name in stored], np.uint8)
    if (unnamed := table[raw] == len(known)).any():
        raise InputError(
            f"{file} has the label {raw[unnamed][0]}, which category.json does not name ({unnamed.sum()} points in "
            "all): complete that table."
        )
    return table[raw]


def _choose_cameras(options: ReadOptions, sensors: list[list[str]], where: str) -> tuple[str, ...]:
    """The cameras to read; `sensors` are those of each folder of tables."""
    there = [camera for camera in sensors[0][1:] if all(camera in others for others in sensors)]
    default = CAMERAS if set(CAMERAS) <= set(there) else there
    if options.cameras is None and default is there:
        _say_once(f"{where} lacks some of nuScenes' six cameras; reading {', '.join(there) or 'none'}.")
    return choose_cameras(options, there, default, where)


@functools.cache
def _say_once(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _part(index: Index, scenes: list[str], cameras: tuple[str, ...]) -> Index:
    """The keyframes of these scenes, with the lidar and these cameras as sensors."""
    kept = np.flatnonzero(np.isin(index["scene"], np.array(scenes)))
    sensors = [index["sensors"].tolist().index(name) for name in (LIDAR, *cameras)]
    tables = np.full(len(kept), index["tables"])
    return {"tables": tables} | {
        name: values[kept] if values.ndim == 1 else values[kept][:, sensors]
        for name, values in index.items()
        if name not in ("tables", "sensors", "categories", "box_names", "boxes")
    }


def _choose_tables(
    root: Path, split: str, version: str | None, official: Mapping[str, tuple[str, ...]]
) -> dict[Path, list[str]]:
    """The folders of tables to read, and the scenes of the split to take from each; several only for `all`."""
    if version is None:
        folders = sorted(file.parent for file in root.glob("v1.0-*/scene.json"))
        if not folders:
            raise InputError(f"{root} holds no nuScenes tables (`v1.0-*/scene.json`): give the folder that does.")
    else:
        folders = [require_folder(root / version, "nuScenes tables", "choose another version.")]
    splits = {folder: _splits(folder, split, official) for folder in folders}
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


def _splits(folder: Path, split: str, official: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Every split with a scene in the tables, and these scenes."""
    try:
        there = [scene["name"] for scene in table(folder, "scene")]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'scene.json'} is no table of scenes with names; download it again.") from error
    splits = splits_there(split, there, {"all": there} | dict(official), folder / "splits.json")
    return {name: scenes for name, scenes in splits.items() if scenes}


def _scenes(ranges: str) -> tuple[str, ...]:
    """Scene names by number: `1-3 7` -> scene-0001, scene-0002, scene-0003, scene-0007."""
    names = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        names += [f"scene-{number:04d}" for number in range(int(first), int(last or first) + 1)]
    return tuple(names)


# The official scenes (700 train, 150 val, 150 test; 8 + 2 in v1.0-mini), and SLidR's own division of train (supplement,
# section E): pretrain_val = the 100 scenes of its mini-val, pretrain = the other 600.
_SPLITS = {
    "train": _scenes(
        "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 "
        "206-214 218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 "
        "467-469 471-472 474-480 499-502 504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 "
        "681 683-689 695-698 700-701 703-719 726-728 730-731 733-741 744 746-747 749-752 757-765 767-769 "
        "786-787 789-792 803-806 808-813 815-817 819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 "
        "947 949 952-953 955-961 975-984 988-992 994-1025 1044-1058 1074-1102 1104-1110"
    ),
    "val": _scenes(
        "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 "
        "770-771 775 777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
    ),
    "test": _scenes(
        "77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 "
        "833-842 844-846 932-933 935-943 1026-1043"
    ),
    "mini_train": _scenes("61 553 655 757 796 1077 1094 1100"),
    "mini_val": _scenes("103 916"),
    "pretrain_val": _scenes(
        "8-9 19 29 32 42 45 49 52 54 56 66-67 73 131 152 166 168 183 190 194 208 210-211 241 243 248 259-261 "
        "287 292 297 305-306 350 352 358 361 365 368 377 388 391 395 413 427-428 438 444 452-453 459 463-464 "
        "475 513 533 544 575 587 589 642 652 658 669 678 687 701 703 706 710 715 726 735 740 758 786 790 804 "
        "806 847 856 868 882 897 899 976 996 1012 1015-1016 1018 1020 1024 1044 1058 1094 1098 1107"
    ),
}
_SPLITS["pretrain"] = tuple(name for name in _SPLITS["train"] if name not in _SPLITS["pretrain_val"])

# Class name, RGB, raw labels (16 classes; paper, supplement: Table 7)
_TABLE = (
    ("ignored", (0, 0, 0), (0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31)),
    ("barrier", (112, 128, 144), (9,)),
    ("bicycle", (220, 20, 60), (14,)),
    ("bus", (255, 127, 80), (16, 15)),
    ("car", (255, 158, 0), (17,)),
    ("construction vehicle", (233, 150, 70), (18,)),
    ("motorcycle", (255, 61, 99), (21,)),
    ("pedestrian", (0, 0, 230), (2, 3, 4, 6)),
    ("traffic cone", (47, 79, 79), (12,)),
    ("trailer", (255, 140, 0), (22,)),
    ("truck", (255, 99, 71), (23,)),
    ("driveable surface", (0, 207, 191), (24,)),
    ("other flat", (175, 0, 75), (25,)),
    ("sidewalk", (75, 0, 75), (26,)),
    ("terrain", (112, 180, 60), (27,)),
    ("manmade", (222, 184, 135), (28,)),
    ("vegetation", (0, 175, 0), (30,)),
)

# Names of the raw labels; a data set's own category.json may number them otherwise
CATEGORIES = tuple(
    (
        "noise animal human.pedestrian.adult human.pedestrian.child human.pedestrian.construction_worker "
        "human.pedestrian.personal_mobility human.pedestrian.police_officer human.pedestrian.stroller "
        "human.pedestrian.wheelchair movable_object.barrier movable_object.debris movable_object.pushable_pullable "
        "movable_object.trafficcone static_object.bicycle_rack vehicle.bicycle vehicle.bus.bendy vehicle.bus.rigid "
        "vehicle.car vehicle.construction vehicle.emergency.ambulance vehicle.emergency.police vehicle.motorcycle "
        "vehicle.trailer vehicle.truck flat.driveable_surface flat.other flat.sidewalk flat.terrain static.manmade "
        "static.other static.vegetation vehicle.ego"
    ).split()
)

# The classes of the detection benchmark; they have the same categories as these classes of points
BOXES = (
    *("car", "truck", "bus", "trailer", "construction vehicle"),
    *("pedestrian", "motorcycle", "bicycle", "traffic cone", "barrier"),
)
_IGNORED = {"static_object.bicycle_rack": ("bicycle", "motorcycle")}  # not every cycle in a rack is annotated

RECORD = DataSet(
    name="nuscenes",
    table=_TABLE,
    boxes=BOXES,
    splits=_SPLITS,
    open=NuScenes,
    root=Path("datasets/nuscenes"),
    how_to_get="get it from nuscenes.org (v1.0-mini or v1.0-trainval with lidarseg)",
    tuning={("train", "val"): ("pretrain", "pretrain_val")},
    intensity_offset=0.0,  # intensities are stored as 0 to 255 and used so
    categories=CATEGORIES,
    submission=NuScenesSubmission,
    detection_submission=NuScenesDetectionSubmission,
)
