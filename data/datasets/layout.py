"""What the readers of folder layouts have in common: scans, cameras, splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.datasets.dataset import OFFICIAL, ReadOptions
from data.files import InputError, read_array, read_json
from data.frame import Needs, measured


def read_points(path: str | Path, columns: int, options: ReadOptions = OFFICIAL) -> np.ndarray:
    """Read a scan as `[N, 4]` float32: x, y, z in metres, intensity as stored. N may be 0.

    The file holds float32 numbers without a header, `columns` of them a point unless `options` say otherwise. Points
    that no lidar measures become NaN (`data.frame.measured`), and none is dropped, because labels and predictions are
    matched to them by row. Raises InputError if the file cannot be read, if it has no other points, or if its values
    tell that points have another number of columns.
    """
    columns = options.columns or columns
    rows = read_array(path, "<f4", columns)
    stored = rows[:, :4].copy()
    points = measured(stored)
    lost = np.isnan(points[:, 0])
    far = np.count_nonzero(np.isfinite(stored[lost]).all(1)) if points is not stored else 0
    negative = np.count_nonzero(stored[:, 3] < 0) if options.columns is None else 0
    x = stored[:2048, 0]  # enough to tell, and fast
    whole = np.count_nonzero((x == np.rint(x)) & (x != 0))  # sensors put points without a return at 0
    period = _period(rows[:2048].ravel(), columns) if len(rows) >= 256 else columns
    strange = ""
    if period != columns:
        strange = f"its numbers look alike every {period}"
    elif far > 0.1 * len(stored):
        strange = f"{far} of its {len(stored)} points would be more than a kilometre away"
    elif whole > 0.1 * len(x) + 200:
        strange = f"{whole} of its first {len(x)} points would have a whole number as x, as rings are"
    elif negative > 0.1 * len(stored):
        strange = f"{negative} of its {len(stored)} intensities would be negative"
    if strange:
        raise InputError(
            f"{path} does not seem to have {columns} columns: {strange}; set `columns` to the "
            "float32 numbers a point that it has (x, y, z in metres, in the lidar's frame)."
        )
    if len(points) and lost.all():
        raise InputError(f"{path} has NaN or infinity in {len(points)} of its {len(points)} points; download it again.")
    return points


def _period(numbers: np.ndarray, columns: int) -> int:
    """By how many of a scan's `numbers` those lie apart that differ least: so many columns has a point.

    Points that follow each other are near each other, and a number of another column is any other. Multiples of
    `columns` are not looked at, for lasers may take turns; rows of equal numbers, or in random order, tell nothing.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        jumps = {
            lag: np.fmin(np.abs(numbers[lag:] - numbers[:-lag]), 1).mean()  # of NaN, 1
            for lag in {columns, *range(3, 11)}
            if lag == columns or lag % columns
        }
    best = min(jumps, key=jumps.get)
    return best if jumps[best] < 0.85 * jumps[columns] else columns


def choose_cameras(options: ReadOptions, there: Sequence[str], default: Sequence[str], where: str) -> tuple[str, ...]:
    """The cameras to read: those of the options, or the default ones.

    Raises InputError if the options name a camera that is not `there`, one twice, or none.
    """
    cameras = default if options.cameras is None else options.cameras
    if options.cameras is not None and (not cameras or len(set(cameras)) < len(cameras) or set(cameras) - set(there)):
        raise InputError(
            f"the cameras {', '.join(cameras) or '(none)'} cannot be read: {where} has {', '.join(there) or 'none'}; "
            "name one or more of them, each once."
        )
    return tuple(cameras)


def cameras_of(frame_id: str, cameras: tuple[str, ...], needs: Needs, rng: np.random.Generator | None) -> list[int]:
    """Indices of the cameras of a frame that `needs` asks for; one of several is drawn with `rng`, else the first.

    Raises InputError if there are no cameras at all.
    """
    if needs.cameras and not cameras:
        raise InputError(f"the frame {frame_id} has no camera, and images are needed; choose another data set.")
    if needs.cameras == 1:
        return [0 if rng is None else int(rng.integers(len(cameras)))]
    return list(range(len(cameras))) if needs.cameras == "all" else []


def splits_there(
    asked: str, there: Sequence[str], official: Mapping[str, Sequence[str]], file: Path
) -> dict[str, list[str]]:
    """Every split by name, with those of its scenes that are there, in the order of `there`.

    Splits are the `official` ones and, before these, the user's own: `{"name": ["scene", ...], ...}` in `file`, which
    may be missing. Official splits may be on disk in part. Raises InputError if the file is not of this form, or if its
    split `asked` names a scene that is not there.
    """
    own = read_json(file) if file.exists() else {}
    lists = own.values() if isinstance(own, dict) else [None]
    if not all(isinstance(scenes, list) and all(isinstance(scene, str) for scene in scenes) for scenes in lists):
        raise InputError(f'{file} must be of the form {{"split": ["scene", ...], ...}}.')
    if missing := [scene for scene in own.get(asked, ()) if scene not in there]:
        raise InputError(
            f"{file} names {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} in its split `{asked}`, "
            f"and {file.parent} has no such scene; correct the name or add the scene."
        )
    splits = {name: set(scenes) for name, scenes in (dict(official) | own).items()}
    return {name: [scene for scene in there if scene in scenes] for name, scenes in splits.items()}
