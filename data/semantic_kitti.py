"""SemanticKITTI in its official folder layout: velodyne, labels, image_2, calib.txt and poses.txt of each sequence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.disk import InputError, read_array, read_points, read_text, require_folder, still_there
from data.frame import Frame, Pairs, read_view
from data.labels import CLASSES, to_train_ids
from data.projection import Rigid, project
from data.splits import SEMANTIC_KITTI

CAMERA = "image_2"  # the left colour camera


@dataclass(frozen=True)
class _Calibration:
    projection: np.ndarray  # [3, 4] camera 0 -> pixels of image_2 (P2)
    lidar_to_camera: Rigid  # lidar -> camera 0 (Tr)


class SemanticKitti:
    """One split of SemanticKITTI (a `data.frame.Reader`): single scans, the left colour camera, 19 classes.

    A frame's pose leads to the lidar frame of its sequence's first scan; without a poses.txt it is the identity.
    Sequences that are not on disk are passed over as long as one of the split is there.

    Args:
        root: the folder that holds `dataset/sequences` or `sequences`.
        split: train, val, test (11-21, no labels) or all.

    Raises InputError if the split does not exist, none of its scans is there, or a calibration or pose is broken.
    """

    name = "semantic_kitti"
    classes = CLASSES[name]
    intensity_offset = 1.0  # the published code feeds intensity (0 to 1) + 1 to the network

    def __init__(self, root: str | Path, split: str):
        if split not in SEMANTIC_KITTI:
            raise InputError(f"SemanticKITTI has no split `{split}`; its splits are {', '.join(SEMANTIC_KITTI)}.")
        root = require_folder(root, "SemanticKITTI", "give the folder that holds `sequences` or `dataset/sequences`.")
        self._sequences = next((f for f in (root / "dataset/sequences", root / "sequences") if f.is_dir()), None)
        if self._sequences is None:
            raise InputError(f"{root} holds neither `dataset/sequences` nor `sequences`: give the folder that does.")
        scans = {
            sequence: sorted(path.stem for path in (self._sequences / sequence / "velodyne").glob("[0-9]" * 6 + ".bin"))
            for sequence in SEMANTIC_KITTI[split]
        }
        present = {sequence: frames for sequence, frames in scans.items() if frames}
        if not present:
            raise InputError(
                f"{self._sequences} has no scan (NN/velodyne/*.bin) of the split `{split}`, which is the sequences "
                f"{', '.join(scans)}: add one or choose another split."
            )
        self.scenes = [sequence for sequence, frames in present.items() for _ in frames]
        self._frames = [frame for frames in present.values() for frame in frames]
        self.ids = [f"{sequence}_{frame}" for sequence, frame in zip(self.scenes, self._frames, strict=True)]
        self._calibrations = {sequence: _read_calibration(self._sequences / sequence) for sequence in present}
        self._poses = {sequence: _read_poses(self._sequences / sequence) for sequence in present}

    def __len__(self) -> int:
        return len(self.ids)

    def image_files(self) -> list[tuple[str, Path]]:
        """(token, file) of every image of the split; the token is the frame's id."""
        return [(frame_id, self._file(i, CAMERA, ".png")) for i, frame_id in enumerate(self.ids)]

    def read(self, index: int, images: bool = True, labels: bool = True, shrink: int = 1) -> Frame:
        """Frame `index` of the split; see `data.frame.Reader.read`.

        Labels are None for sequences without a `labels` folder. Raises InputError for a missing or broken file, and
        DataGone if the folder of the sequences is gone.
        """
        with still_there(self._sequences):
            return self._read(index, images, labels, shrink)

    def _read(self, index: int, images: bool, labels: bool, shrink: int) -> Frame:
        points = read_points(self._file(index, "velodyne", ".bin"), columns=4)
        frame = Frame(id=self.ids[index], points=points, pose=self._pose(index))
        if labels and (self._sequences / self.scenes[index] / "labels").is_dir():
            file = self._file(index, "labels", ".label")
            frame.labels = to_train_ids(read_array(file, "<u4", rows=len(points)), self.name, file)
        if images:
            calibration = self._calibrations[self.scenes[index]]
            view = read_view(CAMERA, self.ids[index], self._file(index, CAMERA, ".png"), shrink)
            frame.cameras = [view]
            point, row, column = project(points, [calibration.lidar_to_camera], [], calibration.projection, view.size)
            frame.pairs = Pairs(point, np.zeros_like(point), row, column)
        return frame

    def _file(self, index: int, kind: str, suffix: str) -> Path:
        return self._sequences / self.scenes[index] / kind / f"{self._frames[index]}{suffix}"

    def _pose(self, index: int) -> np.ndarray:
        """Lidar -> the first scan's lidar, [4, 4]; poses.txt has camera 0 -> the first scan's camera 0."""
        poses, number = self._poses[self.scenes[index]], int(self._frames[index])
        if poses is None:
            return np.eye(4)
        if number >= len(poses):
            raise InputError(
                f"{self._sequences / self.scenes[index] / 'poses.txt'} has {len(poses)} poses, none for frame "
                f"{self._frames[index]}: restore the whole file."
            )
        lidar_to_camera = self._calibrations[self.scenes[index]].lidar_to_camera.matrix()
        return np.linalg.inv(lidar_to_camera) @ _square(poses[number]) @ lidar_to_camera


def _square(matrix: np.ndarray) -> np.ndarray:
    """[3, 4] -> [4, 4]"""
    return np.vstack([matrix, [0.0, 0.0, 0.0, 1.0]])


def _read_calibration(folder: Path) -> _Calibration:
    file = folder / "calib.txt"
    rows = dict(line.split(":", 1) for line in read_text(file).splitlines() if ":" in line)
    for key in ("P2", "Tr"):
        if key not in rows:
            raise InputError(f"{file} has no `{key}`, without which points cannot be placed in {CAMERA}: restore it.")
    lidar_to_camera = _matrix(rows["Tr"], file, "`Tr`")
    if abs(np.linalg.det(lidar_to_camera[:, :3]) - 1) > 0.01:
        raise InputError(f"`Tr` of {file} is no rotation and translation: restore the file from the data set.")
    return _Calibration(_matrix(rows["P2"], file, "`P2`"), Rigid(lidar_to_camera[:, :3], lidar_to_camera[:, 3]))


def _read_poses(folder: Path) -> np.ndarray | None:
    """`[frames, 3, 4]` camera 0 -> the first scan's camera 0, or None without a file."""
    file = folder / "poses.txt"
    if not file.exists():
        return None
    lines = enumerate(read_text(file).splitlines(), 1)
    return np.array([_matrix(line, file, f"line {i}") for i, line in lines if line.strip()]).reshape(-1, 3, 4)


def _matrix(text: str, file: Path, where: str) -> np.ndarray:
    """Twelve numbers as `[3, 4]` float64."""
    try:
        matrix = np.array(text.split(), np.float64).reshape(3, 4)
    except ValueError:
        matrix = np.full((3, 4), np.nan)
    if not np.isfinite(matrix).all():
        raise InputError(f"{where} of {file} is not twelve finite numbers: restore the file from the data set.")
    return matrix
