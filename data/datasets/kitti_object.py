"""KITTI's 3D object benchmark in its official folder layout: velodyne, label_2, calib and image_2 of single frames.

It is read as its development kit describes it. No frame of it was at hand: the tests read the built-in world in this
layout, and labels made by hand.
"""

import os
import re
from pathlib import Path

import numpy as np

from data.boxes import Boxes, Detections, corners, count_points
from data.datasets.dataset import OFFICIAL, DataSet, Reader, ReadOptions, require_whole_split
from data.datasets.kitti_calibration import KittiCalibration
from data.datasets.layout import cameras_of, choose_cameras, read_points, splits_there
from data.files import InputError, printable, read_text, require_folder, still_there, write_text
from data.frame import FARTHEST, Frame, Needs, Pairs, read_view
from data.images import image_size
from data.projection import Rigid, project

CAMERA, TEST_FRAMES = "image_2", 7518
_TEST = "test_"  # before the numbers of test frames, which are those of training frames, too
_SETS = "ImageSets"
_NEAREST = 0.1  # metres before the camera where corners of boxes behind it are thought to be


class KittiObject:
    """One split of KITTI's object benchmark (a `data.datasets.dataset.BoxReader`): boxes, no labels of points.

    A frame's id is its number, `test_` before it in the split test. Only what the left colour camera sees is annotated,
    so a frame has the points in its view alone. Vans and sitting people are to be ignored where cars and pedestrians
    are looked for; all other types are left out, as are regions marked DontCare, which are known in the image only.

    Args:
        root: the folder that holds `training`.
        split: all (of training), test (no boxes), or a list of numbers: `<root>/ImageSets/<split>.txt`, or a user's
            own in `<root>/splits.json`, {"name": [numbers]}, which goes first.
        options: the camera is image_2; scans have four columns.
        dataset: the record that names the classes, for other data in this layout; None = `RECORD`.

    Raises InputError if the split does not exist, or if none of its scans is there.
    """

    def __init__(self, root: str | Path, split: str, options: ReadOptions = OFFICIAL, dataset: DataSet | None = None):
        self.dataset, self._options = dataset or RECORD, options
        self.intensity_scale, self.intensity_offset = options.intensity_scale, self.dataset.intensity_offset
        self._cameras = choose_cameras(options, [CAMERA], [CAMERA], "the layout of KITTI's object benchmark")
        root = require_folder(root, "KITTI's object benchmark", "give the folder that holds `training`.")
        self._test = split == "test"
        self._folder = root / ("testing" if self._test else "training")
        there = _scans(self._folder / "velodyne")
        splits = {"test": there} if self._test else _splits(root, split, there)
        if split not in splits:
            raise InputError(
                f"{root} has no list of the split `{split}` ({_SETS}/{split}.txt), and KITTI ships none: take the "
                f"lists that are in use from a detection library (train has 3712 frames, val 3769), write {split} into "
                f"{root / 'splits.json'}, or choose one of {', '.join(splits)}."
            )
        self._numbers = splits[split]
        if not self._numbers:
            raise InputError(
                f"{self._folder / 'velodyne'} has no scan (NNNNNN.bin) of the split `{split}`: add one or choose "
                "another split."
            )
        self.ids = [_TEST + number if self._test else number for number in self._numbers]
        self.scenes = self.ids  # frames are single ones
        self._index = {name: i for i, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def image_files(self) -> list[tuple[str, Path]]:
        """(token, file) of every image of the split."""
        return [(name, self._file(i, CAMERA, ".png")) for i, name in enumerate(self.ids)]

    def pose(self, index: int) -> np.ndarray:
        """Raises InputError: single frames have no poses."""
        raise InputError(f"{self.dataset.name} has single frames without poses; choose a method that needs none.")

    def read(self, index: int, needs: Needs, rng: np.random.Generator | None = None) -> Frame:
        """Frame `index` of the split (see `Reader.read`), the points that the camera sees.

        Raises InputError for a missing or broken file, and DataGone if the folder of the split is gone.
        """
        with still_there(self._folder):
            return self._read(index, needs, rng)

    def image_boxes(self, frame_id: str, boxes: Boxes) -> np.ndarray:
        """Where boxes are in the image (see `BoxReader`): the rectangle around their corners."""
        index = self._index[frame_id]
        calibration, size = self._calibration(index), image_size(self._file(index, CAMERA, ".png"))
        return rectangles(boxes, calibration.lidar_to_camera(), calibration.projection("P2"), size)

    def in_camera(self, frame_id: str, boxes: Boxes) -> tuple[np.ndarray, np.ndarray]:
        """Boxes as labels have them (see `to_camera`)."""
        return to_camera(boxes, self._calibration(self._index[frame_id]).lidar_to_camera())

    def _read(self, index: int, needs: Needs, rng: np.random.Generator | None) -> Frame:
        image, calibration = self._file(index, CAMERA, ".png"), self._calibration(index)
        lidar_to_camera, projection = calibration.lidar_to_camera(), calibration.projection("P2")
        every = read_points(self._file(index, "velodyne", ".bin"), 4, self._options)
        seen, row, column = project(every, [lidar_to_camera], [], projection, image_size(image))
        frame = Frame(self.ids[index], every[seen])
        if needs.pose:
            frame.pose = self.pose(index)
        if needs.boxes and not self._test:
            boxes, frame.ignore = read_labels(self._file(index, "label_2", ".txt"), self.dataset, lidar_to_camera)
            frame.boxes = count_points(frame.points, boxes)
        if cameras_of(frame.id, self._cameras, needs, rng):
            frame.cameras.append(read_view(CAMERA, frame.id, image, needs.shrink))
            frame.pairs = Pairs(np.arange(len(seen)), np.zeros(len(seen), np.int64), row, column)
        return frame

    def _calibration(self, index: int) -> KittiCalibration:
        return KittiCalibration(self._file(index, "calib", ".txt"))

    def _file(self, index: int, kind: str, suffix: str) -> Path:
        return self._folder / kind / f"{self._numbers[index]}{suffix}"


def _scans(folder: Path) -> list[str]:
    """Numbers of the scans in a folder, in order."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(match[1] for name in names if (match := re.fullmatch(r"([0-9]{6})\.bin", name)))


def _splits(root: Path, split: str, there: list[str]) -> dict[str, list[str]]:
    files = sorted((root / _SETS).glob("*.txt")) if (root / _SETS).is_dir() else []
    lists = {file.stem: read_text(file).split() for file in files if file.stem != "test"}
    return splits_there(split, there, {"all": there} | lists, root / "splits.json")


# --- labels: a box's bottom centre in the frame of camera 0 (x right, y down, z forward), its turn about y

_IGNORED = {"van": "car", "person_sitting": "pedestrian"}  # may be found, for they look alike
_LEVELS = ((40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5))  # easy, moderate, hard: more pixels high; occluded, truncated to


def read_labels(file: Path, dataset: DataSet, lidar_to_camera: Rigid) -> tuple[Boxes, Boxes]:
    """The boxes of a file of label_2 in the lidar frame, and those to ignore; their points are not counted.

    Raises InputError, which names the line, if it is no such file or has a box without three sizes above 0.
    """
    rows = [], []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        kind, *words = line.split() or [""]
        name = _IGNORED.get(kind.lower(), kind.lower())
        if name not in dataset.boxes:
            continue
        try:
            numbers = np.array(words[:14], np.float64)
        except ValueError:
            numbers = np.zeros(0)
        whole = len(numbers) == 14 and np.isfinite(numbers).all() and np.abs(numbers[7:13]).max() <= FARTHEST
        if not whole or not (numbers[7:10] > 0).all():
            raise InputError(
                f"line {number} of {file} ({printable(line, 60)}) is no label, which has a type and 14 finite numbers, "
                "three of them sizes above 0 and no metres above 1000: restore the file from the data set."
            )
        rows[kind.lower() in _IGNORED].append((dataset.boxes.index(name), *numbers))
    return tuple(_boxes(np.array(part, np.float64).reshape(-1, 15), lidar_to_camera) for part in rows)


def _boxes(rows: np.ndarray, lidar_to_camera: Rigid) -> Boxes:
    """Boxes of rows `[K, 15]`: class, then the numbers of a label."""
    truncated, occluded, _, _, top, _, bottom = rows[:, 1:8].T
    height, width, length, *location, turn = rows[:, 8:].T
    difficulty = np.full(len(rows), len(_LEVELS))
    for level, (least, occlusion, truncation) in reversed(list(enumerate(_LEVELS))):
        difficulty[(bottom - top > least) & (occluded <= occlusion) & (truncated <= truncation)] = level
    middle = np.stack(location, 1) - np.outer(height / 2, (0, 1, 0))
    centre = (middle - lidar_to_camera.translation) @ lidar_to_camera.rotation
    heading = np.stack((np.cos(turn), 0 * turn, -np.sin(turn)), 1) @ lidar_to_camera.rotation
    yaw = np.arctan2(heading[:, 1], heading[:, 0])
    return Boxes.of(centre, np.stack((length, width, height), 1), yaw, rows[:, 0], difficulty=difficulty)


def to_camera(boxes: Boxes, lidar_to_camera: Rigid) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as labels have them: the bottom's centre `[K, 3]` in metres, and the turn about y `[K]` in radians."""
    middle = boxes.centre @ lidar_to_camera.rotation.T + lidar_to_camera.translation
    heading = np.stack((np.cos(boxes.yaw), np.sin(boxes.yaw), 0 * boxes.yaw), 1) @ lidar_to_camera.rotation.T
    return middle + np.outer(boxes.size[:, 2] / 2, (0, 1, 0)), np.arctan2(-heading[:, 2], heading[:, 0])


def rectangles(
    boxes: Boxes, lidar_to_camera: Rigid, projection: np.ndarray, size: tuple[int, int] | None
) -> np.ndarray:
    """Left, top, right, bottom `[K, 4]` float64 around the projected corners, cut off at the image if it has a size."""
    places = corners(boxes) @ lidar_to_camera.rotation.T + lidar_to_camera.translation
    pixels = places @ projection[:, :3].T + projection[:, 3]
    pixels = pixels[..., :2] / np.maximum(pixels[..., 2:], _NEAREST)
    if size is not None:
        pixels = pixels.clip(0, (size[1] - 1, size[0] - 1))
    return np.concatenate((pixels.min(1), pixels.max(1)), 1)


def label_line(kind: str, numbers: list[float]) -> str:
    """A line of a label or result file: the type, then the numbers that the format asks for."""
    return " ".join([kind, *(str(n) if isinstance(n, int) else f"{n:.4f}" for n in numbers)]) + "\n"


class KittiObjectSubmission:
    """A folder of results as KITTI's server takes them, to be zipped and handed in: `NNNNNN.txt` of each frame.

    See `data.datasets.dataset.DetectionSubmission`.
    """

    def __init__(self, folder: Path, reader: Reader, split: str):
        require_whole_split(folder, reader, split)
        self._folder, self._reader, self._split, self._written = folder, reader, split, 0

    def write(self, frame_id: str, found: Detections) -> None:
        """Write the detections of a frame, a line each; none make an empty file."""
        boxes, lines = found.boxes, []
        (location, turn), pixels = self._reader.in_camera(frame_id, boxes), self._reader.image_boxes(frame_id, boxes)
        alpha = (turn - np.arctan2(location[:, 0], location[:, 2]) + np.pi) % (2 * np.pi) - np.pi
        for i, label in enumerate(boxes.label):
            place = *pixels[i], *boxes.size[i, ::-1], *location[i], turn[i]
            kind = self._reader.dataset.boxes[label].capitalize()
            lines.append(label_line(kind, [-1, -1, alpha[i], *place, found.score[i]]))
        write_text(self._folder / f"{frame_id.removeprefix(_TEST)}.txt", "".join(lines))
        self._written += 1

    def finish(self) -> str:
        """What was written, and whether the server will miss any."""
        text = f"{self._written} frames in {self._folder}, to be zipped from inside that folder"
        short = self._split == "test" and self._written < TEST_FRAMES
        return text + (f"; incomplete, the server will refuse it: test has {TEST_FRAMES}" if short else "")


RECORD = DataSet(
    name="kitti_object",
    table=(  # no point is labelled; the colours are those of SemanticKITTI
        ("ignored", (0, 0, 0), (0,)),
        ("car", (100, 150, 245), (1,)),
        ("pedestrian", (255, 30, 30), (2,)),
        ("cyclist", (255, 40, 200), (3,)),
    ),
    boxes=("car", "pedestrian", "cyclist"),
    metric="kitti",
    splits={},  # KITTI ships no division into train and val
    open=KittiObject,
    root=Path("datasets/kitti_object"),
    how_to_get="get it from cvlibs.net (velodyne, label_2, calib and image_2 of the 3D object benchmark)",
    few_labels="frames",
    intensity_offset=1.0,  # as for SemanticKITTI, which has the same lidar
    detection_submission=KittiObjectSubmission,
)
