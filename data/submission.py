"""Predictions as the benchmarks' servers take them: SemanticKITTI's .label files, nuScenes-lidarseg's .bin files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from data.disk import InputError, atomic_write
from data.frame import Reader
from data.labels import to_raw_ids
from data.splits import NUSCENES, SEMANTIC_KITTI, SEMANTIC_KITTI_TEST_SCANS

# What the network sees at inference: a lidar scan; the images of pretraining are no input
_NUSCENES_META = {
    "use_camera": False,
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}


class Submission:
    """A folder of predictions to zip and hand in.

    SemanticKITTI: `sequences/NN/predictions/NNNNNN.label`, one raw label a point as uint32.
    nuScenes: `lidarseg/<split>/<lidar token>_lidarseg.bin`, one class (1 to 16) a point as uint8, and
    `<split>/submission.json`.

    Args:
        folder: where to write; made if need be, and empty.
        reader: a whole split.
        split: its name.

    Raises InputError if the folder holds files already, if the split's name is no plain one, or if a scene (sequence)
    of the split is not on disk: the servers take only all of them.
    """

    def __init__(self, folder: Path, reader: Reader, split: str):
        splits = {"semantic_kitti": SEMANTIC_KITTI, "nuscenes": NUSCENES}[reader.name]
        official = set(splits.get(split, ()))
        missing = sorted(official - set(reader.scenes))
        if missing and official & set(reader.scenes):  # else a split of the user's own, which has no server
            raise InputError(
                f"a submission of the split `{split}` needs all of it, but {len(missing)} of its scenes are not there "
                f"({', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}): complete the data set."
            )
        if Path(split).name != split:  # a name from the data set's splits.json
            raise InputError(f"the split {split!r} cannot name a folder of the submission; rename it in splits.json.")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is no empty folder; choose another --submission or empty it.")
        self._folder, self._reader, self._split, self._written = folder, reader, split, 0
        if reader.name == "nuscenes":
            with atomic_write(folder / split / "submission.json") as temporary:
                temporary.write_text(json.dumps({"meta": _NUSCENES_META}, indent=1) + "\n")

    def write(self, frame_id: str, train_ids: np.ndarray) -> None:
        """Write the predicted train ids `[N]`, 1 and above, of all points of a frame."""
        if self._reader.name == "nuscenes":
            path = self._folder / "lidarseg" / self._split / f"{frame_id}_lidarseg.bin"
            content = train_ids.astype("u1")
        else:
            sequence, scan = frame_id.split("_")
            path = self._folder / "sequences" / sequence / "predictions" / f"{scan}.label"
            content = to_raw_ids(train_ids, self._reader.name).astype("<u4")
        with atomic_write(path) as temporary:
            content.tofile(temporary)
        self._written += 1

    def describe(self) -> str:
        """What was written, and what the server will miss: scans that are not on disk."""
        text = f"{self._written} scans in {self._folder}, to be zipped from inside that folder"
        if self._reader.name != "semantic_kitti":
            return text
        found = Counter(self._reader.scenes)
        short = [
            f"{sequence} has {found[sequence]} of {scans}"
            for sequence, scans in SEMANTIC_KITTI_TEST_SCANS.items()
            if sequence in found and found[sequence] < scans
        ]
        return text + (f"; incomplete, the server will refuse it: {', '.join(short)}" if short else "")
