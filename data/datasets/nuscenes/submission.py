"""Predictions as the servers of nuScenes' benchmarks take them."""

import json
import math
from pathlib import Path

import numpy as np

from data.boxes import Detections
from data.datasets.dataset import Reader, require_whole_split
from data.files import atomic_write, write_text

# What the network sees at inference: a lidar scan; the images of pretraining are no input
_META = dict.fromkeys(("use_camera", "use_radar", "use_map", "use_external"), False) | {"use_lidar": True}


class NuScenesSubmission:
    """A folder of predictions as the server of nuScenes-lidarseg takes them, to be zipped and handed in.

    One class (1 to 16) a point as uint8 in `lidarseg/<split>/<lidar token>_lidarseg.bin`, and
    `<split>/submission.json`. See `data.datasets.dataset.Submission`.
    """

    def __init__(self, folder: Path, reader: Reader, split: str):
        require_whole_split(folder, reader, split)
        self._folder, self._split, self._written = folder, split, 0
        write_text(folder / split / "submission.json", json.dumps({"meta": _META}, indent=1) + "\n")

    def write(self, frame_id: str, train_ids: np.ndarray) -> None:
        """Write the predicted train ids `[N]`, 1 and above, of all points of a frame."""
        with atomic_write(self._folder / "lidarseg" / self._split / f"{frame_id}_lidarseg.bin") as temporary:
            train_ids.astype("u1").tofile(temporary)
        self._written += 1

    def describe(self) -> str:
        """What was written."""
        return f"{self._written} scans in {self._folder}, to be zipped from inside that folder"


class NuScenesDetectionSubmission:
    """Boxes as the server of nuScenes' detection benchmark takes them: `results_nusc.json`, to be zipped and handed in.

    Velocities are 0 and attributes empty, for they are not predicted. See `data.datasets.dataset.DetectionSubmission`.
    """

    MOST = 500  # boxes of a keyframe, the surest ones

    def __init__(self, folder: Path, reader: Reader, split: str):
        require_whole_split(folder, reader, split)
        self._file, self._reader, self._results = folder / "results_nusc.json", reader, {}
        self._rows = {name: i for i, name in enumerate(reader.ids)}

    def write(self, frame_id: str, found: Detections) -> None:
        """Keep the detections of a frame, in the world's coordinates and upright there."""
        row, found = self._rows[frame_id], found.select(np.argsort(-found.score, kind="stable")[: self.MOST])
        boxes, pose, sample = found.boxes, self._reader.pose(row), self._reader.samples[row]
        centres = boxes.centre @ pose[:3, :3].T + pose[:3, 3]
        heading = np.stack((np.cos(boxes.yaw), np.sin(boxes.yaw)), 1) @ pose[:2, :2].T
        yaw = np.arctan2(heading[:, 1], heading[:, 0])
        self._results[sample] = [
            {
                "sample_token": sample,
                "translation": centres[i].tolist(),
                "size": boxes.size[i, [1, 0, 2]].tolist(),
                "rotation": [math.cos(yaw[i] / 2), 0.0, 0.0, math.sin(yaw[i] / 2)],
                "velocity": [0.0, 0.0],
                "detection_name": self._reader.dataset.boxes[label].replace(" ", "_"),
                "detection_score": float(found.score[i]),
                "attribute_name": "",
            }
            for i, label in enumerate(boxes.label)
        ]

    def finish(self) -> str:
        """Write the file; what was written, and how many keyframes the server will miss."""
        write_text(self._file, json.dumps({"meta": _META, "results": self._results}) + "\n")
        text, missing = f"{len(self._results)} keyframes in {self._file}", len(self._rows) - len(self._results)
        return text + (f"; incomplete, the server will refuse it: {missing} are missing" if missing else "")
