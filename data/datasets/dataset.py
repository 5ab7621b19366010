"""The contracts of a data set: its record, its reader, its submissions."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from data.boxes import Boxes, Detections
from data.files import InputError
from data.frame import Frame, Needs

_UNKNOWN = 255  # stands for raw labels that the data set does not define


@dataclass(frozen=True)
class ReadOptions:
    """Where own data differ from a data set's official layout.

    cameras: names of the cameras to read, in this order; None = those of the layout.
    columns: float32 numbers a point (the first four are x, y, z, intensity); None = as the layout has it.
    intensity_scale: factor on the stored intensity, for scans whose intensities have another range.

    Raises InputError for fewer than four columns.
    """

    cameras: tuple[str, ...] | None = None
    columns: int | None = None
    intensity_scale: float = 1.0

    def __post_init__(self):
        if self.columns is not None and self.columns < 4:
            raise InputError(f"a scan cannot have {self.columns} columns; x, y, z and intensity are needed.")


OFFICIAL = ReadOptions()


class Reader(Protocol):
    """The frames of one split."""

    dataset: "DataSet"
    ids: list[str]  # of the frames, in order
    scenes: list[str]  # the scene (sequence) of each frame
    labelled: list[bool]  # which frames have labels; a reader that has them for all or none may lack it
    intensity_scale: float  # the network's input feature is intensity as stored * scale + offset
    intensity_offset: float

    def __len__(self) -> int: ...

    def read(self, index: int, needs: Needs, rng: np.random.Generator | None = None) -> Frame:
        """Frame `index` with the parts that `needs` names; no other file is opened.

        Where one of several cameras is asked for, `rng` draws it; without `rng` it is the first. Raises InputError for
        files that cannot be used, and DataGone if the data set's folder is gone.
        """
        ...

    def pose(self, index: int) -> np.ndarray:
        """Where the scan of frame `index` was taken: lidar -> world, `[4, 4]` float64, metres. No scan is opened.

        Frames of one scene share a world. Raises InputError if the pose is missing or broken, and DataGone as `read`.
        """
        ...

    def image_files(self) -> list[tuple[str, Path]]:
        """(token, file) of every image of the split, from the cameras that are read."""
        ...


class BoxReader(Reader, Protocol):
    """The frames of a split whose boxes are judged by how they look in an image, as KITTI's are."""

    def image_boxes(self, frame_id: str, boxes: Boxes) -> np.ndarray:
        """Left, top, right and bottom of boxes in a frame's image, cut off at its borders: `[K, 4]` float64, pixels."""
        ...


class Submission(Protocol):
    """Predictions in the format of a benchmark's server; made from a folder, a reader and the name of its split.

    Raises InputError if the folder is not empty, or if a scene of the split is not on disk.
    """

    def write(self, frame_id: str, train_ids: np.ndarray) -> None:
        """Write the predicted train ids `[N]`, 1 and above, of all points of a frame."""
        ...

    def describe(self) -> str:
        """What was written, and what the server will miss."""
        ...


class DetectionSubmission(Protocol):
    """Boxes in the format of a detection benchmark's server; made, and refused, as a `Submission` is."""

    def write(self, frame_id: str, found: Detections) -> None:
        """Write, or keep to be written, what is found in a frame."""
        ...

    def finish(self) -> str:
        """Write what was kept, once all frames are there; says what was written, and what the server will miss."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Everything that other code needs to know about a data set.

    name: its name on the command line (`--dataset`), and that of the folder of its superpixel maps.
    table: (class name, RGB colour, raw labels) by train id; train id 0 is "ignored". Of several raw labels the first
        is written when predictions go back to raw labels.
    splits: official splits, name -> scenes.
    open: (root, split, options) -> Reader.
    root: folder where it is looked for by default.
    how_to_get: what to do if it is not there; begins with a verb.
    few_labels: whether a share of the labels is a share of the scenes or of the frames, as published.
    boxes: names of the classes of objects to detect, all of them in the table; () = it has no boxes.
    metric: whose metric detections are scored with.
    tuning: (split to train on, split to score) -> the two that stand in for them while learning rates are chosen, and
        share no scene with each other or the split that is scored. Others are chosen on the split that is scored.
    intensity_offset: added to the stored intensity to make the network's input feature.
    raw_bits: mask of the bits of a stored label that give the class.
    categories: names of the raw labels, for layouts whose tables say which number stands for which; () = they do not.
    submission: (folder, reader, split) -> Submission; None = there is no benchmark server.
    detection_submission: (folder, reader, split) -> DetectionSubmission; likewise.
    prepare: called with the root before it is opened; writes the built-in world there.

    Readers take their record along to worker processes, so its functions must be picklable (no lambdas).
    """

    name: str
    table: tuple[tuple[str, tuple[int, int, int], tuple[int, ...]], ...]
    splits: Mapping[str, tuple[str, ...]]
    open: Callable[[Path, str, ReadOptions], Reader]
    root: Path
    how_to_get: str
    boxes: tuple[str, ...] = ()
    metric: Literal["nuscenes", "kitti"] = "nuscenes"
    few_labels: Literal["scenes", "frames"] = "scenes"
    tuning: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    intensity_offset: float = 0.0
    raw_bits: int = 0xFF
    categories: tuple[str, ...] = ()
    submission: Callable[[Path, Reader, str], Submission] | None = None
    detection_submission: Callable[[Path, Reader, str], DetectionSubmission] | None = None
    prepare: Callable[[Path], None] | None = None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by train id; [0] is "ignored"."""
        return tuple(row[0] for row in self.table)

    @cached_property
    def colours(self) -> np.ndarray:
        """`[classes, 3]` uint8 RGB."""
        return np.array([row[1] for row in self.table], np.uint8)

    @cached_property
    def box_colours(self) -> np.ndarray:
        """`[len(boxes), 3]` uint8 RGB: those of the same classes of points."""
        rows = [self.classes.index(name) for name in self.boxes]
        return self.colours[np.array(rows, np.int64)]

    @cached_property
    def _learning_map(self) -> np.ndarray:
        learning_map = np.full(1 + max(max(raw) for _, _, raw in self.table), _UNKNOWN, np.uint8)
        for train_id, (_, _, raw) in enumerate(self.table):
            learning_map[list(raw)] = train_id
        return learning_map

    def to_train_ids(self, raw: np.ndarray, file: str | Path) -> np.ndarray:
        """Train ids `[N]` uint8 of raw labels `[N]`, unsigned integers as stored in `file`.

        Raises InputError if a label is none of the data set's.
        """
        raw = raw & raw.dtype.type(self.raw_bits)
        train_ids = self._learning_map[np.minimum(raw, len(self._learning_map) - 1)]
        strange = raw[(raw >= len(self._learning_map)) | (train_ids == _UNKNOWN)]
        if len(strange):
            raise InputError(
                f"{file} has the label {strange[0]}, which {self.name} does not define ({len(strange)} points in all): "
                "download it again."
            )
        return train_ids

    def to_raw_ids(self, train_ids: np.ndarray) -> np.ndarray:
        """One raw label a class, `[N]` integers below the number of classes -> `[N]` uint16, for submission files."""
        return np.array([row[2][0] for row in self.table], np.uint16)[train_ids]


def require_whole_split(folder: Path, reader: Reader, split: str) -> None:
    """Raise InputError unless the folder is empty, the split has a plain name and, if official, all its scenes."""
    official = set(reader.dataset.splits.get(split, ()))
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


def named_object(name: str, known: Mapping[str, str], key: str) -> object:
    """What `--dataset` or `--method` names: an entry of `known`, or any object by `package.module:NAME`.

    Modules in the working folder are found, too. `key` is what kind of object it is, for the error: raises InputError
    if the object cannot be imported.
    """
    place = known.get(name, name)
    module, colon, attribute = place.partition(":")
    if not colon:
        raise InputError(
            f"there is no {key} `{name}`; choose one of {', '.join(known)}, or name your own as package.module:NAME."
        )
    if name not in known and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the {key} `{name}` cannot be imported ({error}); name it as package.module:NAME.") from error
