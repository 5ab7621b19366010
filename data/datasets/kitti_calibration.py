"""The calibration files of KITTI's benchmarks: `calib.txt` of a sequence, `calib/NNNNNN.txt` of a frame."""

from pathlib import Path

import numpy as np

from data.files import InputError, read_text
from data.projection import Rigid, is_camera, is_rigid


class KittiCalibration:
    """The rows of a calibration file, by name. Raises InputError if it cannot be read, or has a row twice."""

    def __init__(self, file: Path):
        self.file, self._rows = file, {}
        lines = [line.split(":", 1) for line in read_text(file).splitlines() if ":" in line]
        for name, numbers in ((name.strip(), numbers.split()) for name, numbers in lines):
            if self._rows.setdefault(name, numbers) != numbers:
                raise InputError(f"{file} has `{name}` twice, with other numbers: keep the line that is right.")

    def projection(self, key: str) -> np.ndarray:
        """Camera 0 -> pixels of a camera, `P2` say: [3, 4] float64. Raises InputError if it is missing or broken."""
        projection = self._matrix(key)
        if not is_camera(projection):
            raise InputError(f"`{key}` of {self.file} projects no point: restore the file from the data set.")
        return projection

    def lidar_to_camera(self) -> Rigid:
        """Lidar -> camera 0: `Tr`, or what the calibrations of KITTI's object benchmark have in its place.

        Raises InputError if it is missing or no rigid motion.
        """
        key = "Tr_velo_to_cam" if "Tr" not in self._rows and "Tr_velo_to_cam" in self._rows else "Tr"
        tr = self._matrix(key)
        if key != "Tr" and "R0_rect" in self._rows:  # which `Tr` contains
            tr = matrix(self._rows["R0_rect"], self.file, "`R0_rect`", columns=3) @ tr
        if not is_rigid(tr):
            raise InputError(
                f"`{key}` of {self.file} is no rotation and translation: restore the file from the data set."
            )
        return Rigid(tr[:, :3], tr[:, 3])

    def _matrix(self, key: str) -> np.ndarray:
        if key not in self._rows:
            raise InputError(
                f"{self.file} has no `{key}`, which images and poses need: take the calib.txt of the velodyne data or "
                "of SemanticKITTI (the one that comes with KITTI's odometry images has no `Tr`)."
            )
        return matrix(self._rows[key], self.file, f"`{key}`")


def matrix(numbers: list[str], file: Path, where: str, columns: int = 4) -> np.ndarray:
    """Numbers as `[3, columns]` float64. Raises InputError, which names the place, if they are none."""
    try:
        found = np.array(numbers, np.float64).reshape(3, columns)
    except ValueError:
        found = np.array(np.nan)
    if not np.isfinite(found).all():
        count = {3: "nine", 4: "twelve"}[columns]
        raise InputError(f"{where} of {file} is not {count} finite numbers: restore the file from the data set.")
    return found
