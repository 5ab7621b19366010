"""Anybody's scans: .bin, .npy, .npz, .pcd and .ply files as x, y, z, intensity."""

from pathlib import Path

import numpy as np
import pypcd4

from data.datasets.dataset import ReadOptions
from data.datasets.layout import read_points
from data.files import InputError

INTENSITY = "intensity", "scalar_intensity", "reflectance", "remission", "i"  # names in use
_PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_PLY_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_PLY_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}


def read_scan(path: Path, columns: int | None = None, intensity_scale: float = 1.0) -> np.ndarray:
    """The points of a file `[N, 4]` float32, in its order: x, y, z in metres; intensity * `intensity_scale`.

    Args:
        path: .bin (float32 numbers without a header), .npy or .npz (`[N, 4 or more]`; of an .npz the first array), .pcd
            (ascii, binary, binary_compressed) or .ply (ascii, binary; the vertices are its first element).
        columns: float32 numbers a point of a .bin; the first four are x, y, z, intensity. None = 4, which is checked.
        intensity_scale: brings intensities into the range that the network was trained with.

    Values may be NaN or infinite. Raises InputError for a file that is not what its name says, and for one without x,
    y, z and intensity.
    """
    try:
        points = _READERS[path.suffix.lower()](path, columns)
    except InputError:
        raise
    except Exception as error:  # the ways of five parsers to say "broken"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} cannot be read as {path.suffix} ({reason}); export it again.") from error
    points[:, 3] *= np.float32(intensity_scale)
    return points


def find_scans(places: tuple[Path, ...], but: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """(file, its path relative to the folder that was named) of every scan in files and folders, folders sorted.

    Args:
        places: files, and folders that are searched with all that is in them.
        but: endings of files that are none, whatever their kind.

    Raises InputError for a place that is not there, a file of an unknown kind, and a folder without scans.
    """
    found = []
    for place in places:
        inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in _READERS and not p.name.endswith(but))
        if not place.exists() or not (inside or place.suffix.lower() in _READERS):
            what = "holds no scan" if place.is_dir() else "is no scan" if place.exists() else "is not there"
            raise InputError(f"{place} {what}; name files or folders of {', '.join(_READERS)}.")
        found += [(path, path.relative_to(place)) for path in inside] or [(place, Path(place.name))]
    return found


def _bin(path: Path, columns: int | None) -> np.ndarray:
    return read_points(path, 4, ReadOptions(columns=columns))


def _array(path: Path, columns: int | None) -> np.ndarray:
    with open(path, "rb") as file:
        array = np.load(file, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            array = array[array.files[0]] if array.files else np.zeros(0)
    if array.ndim != 2 or array.shape[1] < 4:
        raise ValueError(f"its array is {list(array.shape)}, not [N, 4 or more]")
    return array[:, :4].astype(np.float32)


def _pcd(path: Path, columns: int | None) -> np.ndarray:
    cloud = pypcd4.PointCloud.from_path(path)
    if len(cloud.pc_data) != cloud.metadata.points:
        raise ValueError(f"{len(cloud.pc_data)} of its {cloud.metadata.points} points are there")
    return _named(cloud.pc_data)


def _ply(path: Path, columns: int | None) -> np.ndarray:
    """The vertices of a PLY file (Turk, 1994), whose properties must be scalars; what follows them is not read."""
    with open(path, "rb") as file:
        if file.readline(8).strip() != b"ply":
            raise ValueError("it does not begin with `ply`")
        encoding, rows, fields, elements = "", 0, [], 0
        while (words := file.readline(1000).decode("ascii").split()) != ["end_header"]:
            if not words:
                raise ValueError("its header has no end")
            if words[0] == "format":
                encoding = words[1]
            elif words[0] == "element":
                elements += 1
                if elements == 1 and words[1] != "vertex":
                    raise ValueError("its first element is no vertex")
                rows = int(words[2]) if elements == 1 else rows
            elif words[0] == "property" and elements == 1:
                fields.append((words[-1], _PLY_TYPES[words[1]]))
        order = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}[encoding]
        dtype = np.dtype([(name, order + kind) for name, kind in fields])
        if encoding == "ascii":
            vertices = np.loadtxt(file, dtype, max_rows=rows, ndmin=1) if rows else np.zeros(0, dtype)
        else:
            vertices = np.frombuffer(file.read(rows * dtype.itemsize), dtype)
    if len(vertices) != rows:
        raise ValueError(f"{len(vertices)} of its {rows} points are there")
    return _named(vertices)


def _named(table: np.ndarray) -> np.ndarray:
    """Columns x, y, z and intensity of a structured array."""
    names = {name.lower(): name for name in table.dtype.names}
    intensity = next((names[name] for name in INTENSITY if name in names), None)
    if intensity is None or not {"x", "y", "z"} <= set(names):
        raise ValueError(f"it has {', '.join(names)}; x, y, z and intensity are needed")
    return np.stack([table[name].astype(np.float32) for name in (names["x"], names["y"], names["z"], intensity)], 1)


_READERS = {".bin": _bin, ".npy": _array, ".npz": _array, ".pcd": _pcd, ".ply": _ply}
