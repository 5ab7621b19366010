"""What the readers of folder layouts have in common: scans, cameras, splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.datasets.dataset import OFFICIAL, ReadOptions
from data.files import InputError, read_array, read_json
from data.frame import Needs


def read_points(path: str | Path, columns: int, options: ReadOptions = OFFICIAL) -> np.ndarray:
    """Read a scan as `[N, 4]` float32: x, y, z in metres, intensity as stored. N may be 0.

    The file holds float32 numbers without a header, `columns` of them a point unless `options` say otherwise. Raises
    InputError if it cannot be read, or if a value is NaN or infinite (points are never dropped, because labels and
    predictions are matched to them by row). If `options` name no columns, it is also raised where more than a tenth of
    the intensities are negative, as they are where points have another number of columns.
    """
    points = read_array(path, "<f4", options.columns or columns)[:, :4].copy()
    broken = np.count_nonzero(~np.isfinite(points).all(axis=1))
    if broken:
        raise InputError(
            f"{path} has NaN or infinity in {broken} of its {len(points)} points; download it again, or remove them "
            "from the scan and its labels."
        )
    negative = np.count_nonzero(points[:, 3] < 0)
    if options.columns is None and negative > 0.1 * len(points):
        raise InputError(
            f"{path} does not seem to have {columns} columns: {negative} of its {len(points)} intensities would be "
            "negative; set `columns` to the float32 numbers a point that it has."
        )
    return points


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
