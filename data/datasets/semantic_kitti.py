"""SemanticKITTI in its official folder layout: velodyne, labels, images, calib.txt and poses.txt of each sequence."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data.datasets.dataset import OFFICIAL, DataSet, Reader, ReadOptions, require_whole_split
from data.datasets.kitti_calibration import KittiCalibration, matrix
from data.datasets.layout import cameras_of, choose_cameras, read_points, splits_there
from data.files import InputError, atomic_write, read_array, read_text, require_folder, still_there
from data.frame import Frame, Needs, Pairs, read_view
from data.projection import is_rigid, project

CAMERAS = {"image_0": "P0", "image_1": "P1", "image_2": "P2", "image_3": "P3"}  # folder -> its projection in calib.txt
_LEFT = "image_2"  # the left colour camera, which is read by default
_SCAN = re.compile(r"([0-9]{6}|[0-9]{10})(\.bin|\.BIN)")  # ten digits in KITTI's raw data and in KITTI-360


class SemanticKitti:
    """One split of SemanticKITTI (a `data.datasets.dataset.Reader`): single scans, 19 classes.

    A frame's id is `<sequence>_<scan>`, as is the token of its image_2; tokens of other cameras end with their name.
    A frame's pose leads to the lidar frame of its sequence's first scan. Sequences of an official split that are not on
    disk are passed over as long as one of them is there.

    Args:
        root: the folder that holds `dataset/sequences` or `sequences`.
        split: train, val, test (11-21, no labels), all, or a user's own: {"name": [sequences]} in `<root>/splits.json`,
            or else in a `splits.json` beside `sequences`, goes first.
        options: cameras are image_0 to image_3, image_2 alone by default; scans have four columns.
        dataset: the record that names classes and splits, for other data in this layout; None = `RECORD`.

    Raises InputError if the split does not exist, if none of its scans is there, or if a camera does not exist.
    """

    def __init__(self, root: str | Path, split: str, options: ReadOptions = OFFICIAL, dataset: DataSet | None = None):
        self.dataset, self._options = dataset or RECORD, options
        self.intensity_scale, self.intensity_offset = options.intensity_scale, self.dataset.intensity_offset
        self._cameras = choose_cameras(options, list(CAMERAS), [_LEFT], "the layout of SemanticKITTI")
        root = require_folder(root, "SemanticKITTI", "give the folder that holds `sequences` or `dataset/sequences`.")
        self._sequences = next((f for f in (root / "dataset/sequences", root / "sequences") if f.is_dir()), None)
        if self._sequences is None:
            raise InputError(f"{root} holds neither `dataset/sequences` nor `sequences`: give the folder that does.")
        own = root / "splits.json"
        own = own if own.exists() else self._sequences.parent / "splits.json"
        there = sorted(folder.parent.name for folder in self._sequences.glob("*/velodyne") if _files(folder))
        splits = splits_there(split, there, self.dataset.splits, own)
        if split not in splits:
            raise InputError(f"SemanticKITTI has no split `{split}`; its splits are {', '.join(splits)}.")
        scans = [(sequence, *scan) for sequence in splits[split] for scan in _scans(self._sequences / sequence)]
        if not scans:
            official = ", ".join(self.dataset.splits.get(split, ()))
            raise InputError(
                f"{self._sequences} has no scan (NN/velodyne/*.bin) of the split `{split}`, which is the sequences "
                f"{official}: add one or choose another split."
            )
        self.scenes, self._scans, self._suffixes = (list(column) for column in zip(*scans, strict=True))
        self.ids = [f"{sequence}_{scan}" for sequence, scan, _ in scans]
        self._calibrations: dict[str, KittiCalibration] = {}  # of the sequences that needed it so far
        self._poses: dict[str, np.ndarray] = {}  # likewise: [scans, 3, 4] camera 0 -> the first scan's camera 0

    @property
    def labelled(self) -> list[bool]:
        """Which frames have labels: those of sequences with a `labels` folder."""
        there = {sequence: (self._sequences / sequence / "labels").is_dir() for sequence in set(self.scenes)}
        return [there[sequence] for sequence in self.scenes]

    def __len__(self) -> int:
        return len(self.ids)

    def image_files(self) -> list[tuple[str, Path]]:
        """(token, file) of every image of the split."""
        return [(self._token(i, camera), self._image(i, camera)) for i in range(len(self)) for camera in self._cameras]

    def read(self, index: int, needs: Needs, rng: np.random.Generator | None = None) -> Frame:
        """Frame `index` of the split (see `Reader.read`).

        Labels are None for sequences without a `labels` folder. calib.txt is read for cameras and poses, poses.txt for
        poses. Raises InputError for a missing or broken file, and DataGone if the folder of the sequences is gone.
        """
        with still_there(self._sequences):
            return self._read(index, needs, rng)

    def pose(self, index: int) -> np.ndarray:
        """Lidar -> the lidar of the sequence's first scan, by poses.txt and calib.txt (see `Reader.pose`)."""
        with still_there(self._sequences):
            return self._pose(index)

    def _read(self, index: int, needs: Needs, rng: np.random.Generator | None) -> Frame:
        points = read_points(self._file(index, "velodyne", self._suffixes[index]), 4, self._options)
        frame, sequence = Frame(self.ids[index], points), self.scenes[index]
        if needs.labels and (self._sequences / sequence / "labels").is_dir():
            file = self._file(index, "labels", ".label")
            frame.labels = self.dataset.to_train_ids(read_array(file, "<u4", rows=len(points)), file)
        if needs.pose:
            frame.pose = self.pose(index)
        pairs = []
        for i, which in enumerate(cameras_of(frame.id, self._cameras, needs, rng)):
            camera = self._cameras[which]
            calibration = self._calibration(sequence)
            lidar_to_camera, projection = calibration.lidar_to_camera(), calibration.projection(CAMERAS[camera])
            view = read_view(camera, self._token(index, camera), self._image(index, camera), needs.shrink)
            point, row, column = project(points, [lidar_to_camera], [], projection, view.size)
            frame.cameras.append(view)
            pairs.append(Pairs(point, np.full_like(point, i), row, column))
        frame.pairs = Pairs.concatenate(pairs)
        return frame

    def _token(self, index: int, camera: str) -> str:
        return self.ids[index] if camera == _LEFT else f"{self.ids[index]}_{camera}"

    def _file(self, index: int, kind: str, suffix: str) -> Path:
        return self._sequences / self.scenes[index] / kind / f"{self._scans[index]}{suffix}"

    def _image(self, index: int, camera: str) -> Path:
        """In `image_2`, say, or else where KITTI's raw data have it: `image_02/data`."""
        folder, raw = self._sequences / self.scenes[index], f"{camera.replace('_', '_0')}/data"
        there = (folder / camera).exists() or not (folder / raw).is_dir()
        return self._file(index, camera if there else raw, ".png")

    def _calibration(self, sequence: str) -> KittiCalibration:
        if sequence not in self._calibrations:
            self._calibrations[sequence] = KittiCalibration(self._sequences / sequence / "calib.txt")
        return self._calibrations[sequence]

    def _pose(self, index: int) -> np.ndarray:
        sequence, number = self.scenes[index], int(self._scans[index])
        file = self._sequences / sequence / "poses.txt"
        if sequence not in self._poses:
            if not file.exists():
                raise InputError(
                    f"cannot read {file}: it is not there, and poses are needed; take it from SemanticKITTI, write "
                    "what your own odometry says, or choose a method that needs no poses."
                )
            lines = [(i, line) for i, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
            poses = np.array([matrix(line.split(), file, f"line {i}") for i, line in lines]).reshape(-1, 3, 4)
            if len(bent := np.flatnonzero(~is_rigid(poses))):
                raise InputError(
                    f"line {lines[bent[0]][0]} of {file} is no rotation and translation: restore the file from the "
                    "data set."
                )
            self._poses[sequence] = poses
        poses = self._poses[sequence]
        if number >= len(poses):
            raise InputError(
                f"{file} has {len(poses)} poses, none for frame {self._scans[index]}: restore the whole file."
            )
        lidar_to_camera = self._calibration(sequence).lidar_to_camera().matrix()
        return np.linalg.inv(lidar_to_camera) @ np.vstack([poses[number], [0, 0, 0, 1]]) @ lidar_to_camera


def _files(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # not there, or not a folder
        return []


def _scans(folder: Path) -> list[tuple[str, str]]:
    """Names and suffixes of a sequence's scans, in order. Raises InputError if none is named like one."""
    files = _files(folder / "velodyne")
    scans = sorted(match.groups() for file in files if (match := _SCAN.fullmatch(file)))
    strange = [file for file in files if not file.startswith(".")]
    if strange and not scans:
        raise InputError(
            f"{folder / 'velodyne' / strange[0]} is not named like a scan, six or ten digits and `.bin`: rename the "
            "scans of this sequence, and their labels and images alike."
        )
    return scans


class KittiSubmission:
    """A folder of predictions as SemanticKITTI's server takes them, to be zipped and handed in.

    One raw label a point as uint32 in `sequences/NN/predictions/NNNNNN.label`. See `data.datasets.dataset.Submission`.
    """

    def __init__(self, folder: Path, reader: Reader, split: str):
        require_whole_split(folder, reader, split)
        self._folder, self._reader, self._written = folder, reader, 0

    def write(self, frame_id: str, train_ids: np.ndarray) -> None:
        """Write the predicted train ids `[N]`, 1 and above, of all points of a frame."""
        sequence, scan = frame_id.rsplit("_", 1)
        with atomic_write(self._folder / "sequences" / sequence / "predictions" / f"{scan}.label") as temporary:
            self._reader.dataset.to_raw_ids(train_ids).astype("<u4").tofile(temporary)
        self._written += 1

    def describe(self) -> str:
        """What was written, and which scans of the test sequences the server will miss."""
        found = Counter(self._reader.scenes)
        short = [
            f"{sequence} has {found[sequence]} of {scans}"
            for sequence, scans in TEST_SCANS.items()
            if sequence in found and found[sequence] < scans
        ]
        text = f"{self._written} scans in {self._folder}, to be zipped from inside that folder"
        return text + (f"; incomplete, the server will refuse it: {', '.join(short)}" if short else "")


_TEST = tuple(f"{sequence:02d}" for sequence in range(11, 22))  # their labels are not public

# Scans of the test sequences; the benchmark's server wants every one
TEST_SCANS = dict(zip(_TEST, (921, 1061, 3281, 631, 1901, 1731, 491, 1801, 4981, 831, 2721), strict=True))

# Class name, RGB, raw labels (19 classes; paper, supplement: Table 8)
_TABLE = (
    ("ignored", (0, 0, 0), (0, 1, 52, 99)),
    ("car", (100, 150, 245), (10, 252)),
    ("bicycle", (100, 230, 245), (11,)),
    ("motorcycle", (30, 60, 150), (15,)),
    ("truck", (80, 30, 180), (18, 258)),
    ("other vehicle", (0, 0, 255), (20, 13, 16, 256, 257, 259)),
    ("person", (255, 30, 30), (30, 254)),
    ("bicyclist", (255, 40, 200), (31, 253)),
    ("motorcyclist", (150, 30, 90), (32, 255)),
    ("road", (255, 0, 255), (40, 60)),
    ("parking", (255, 150, 255), (44,)),
    ("sidewalk", (75, 0, 75), (48,)),
    ("other ground", (175, 0, 75), (49,)),
    ("building", (255, 200, 0), (50,)),
    ("fence", (255, 120, 50), (51,)),
    ("vegetation", (0, 175, 0), (70,)),
    ("trunk", (135, 60, 0), (71,)),
    ("terrain", (150, 240, 80), (72,)),
    ("pole", (255, 240, 150), (80,)),
    ("traffic sign", (255, 0, 0), (81,)),
)

RECORD = DataSet(
    name="kitti",
    table=_TABLE,
    splits={
        "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
        "val": ("08",),
        "test": _TEST,
        "all": tuple(f"{sequence:02d}" for sequence in range(22)),
    },
    open=SemanticKitti,
    root=Path("datasets/semantic_kitti"),
    how_to_get="get it from semantic-kitti.org (velodyne, labels, calib, and image_2 of KITTI odometry)",
    few_labels="frames",
    intensity_offset=1.0,  # the published code feeds intensity (0 to 1) + 1 to the network
    raw_bits=0xFFFF,  # the upper half is the instance
    submission=KittiSubmission,
)
