"""Reading and writing files so that bad input is one clear sentence and nothing is ever half-written."""

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

MOST_PIXELS = 100_000_000  # of an image; a bomb's file is small, its pixels fill the memory


class InputError(Exception):
    """The user's input cannot be used. The message is one sentence: what, where, what to do (run.py exits with 2)."""


class DataGone(InputError):
    """A data set that was there is no longer: another frame of it would not read either."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; on success fsync it and rename it to `path`, on failure remove it.

    Raises InputError if the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose a folder you can write to."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide results from colleagues
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_folder(path: str | Path, what: str, remedy: str) -> Path:
    """Return `path` if it is a folder, else raise InputError naming `what` was looked for and the `remedy`."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no {what} at {path.absolute()}: {remedy}")
    return path


@contextlib.contextmanager
def still_there(folder: Path) -> Iterator[None]:
    """Turns an InputError into DataGone if `folder`, which the files that are read lie in, is gone or empty.

    Empty, because that is what an unmounted disk leaves behind.
    """
    try:
        yield
    except InputError as error:
        try:
            gone = next(os.scandir(folder), None) is None
        except OSError:
            gone = True
        if gone:
            raise DataGone(
                f"the data set is gone: {folder} is {'empty' if folder.is_dir() else 'no longer there'}; mount or "
                "restore it and start again."
            ) from error
        raise


def names_inside(name: str) -> bool:
    """Whether a relative path leads nowhere but below the folder that it is relative to, links apart.

    Control characters are no names: they end paths, and write to terminals when they are printed.
    """
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name.isprintable()


def inside(root: Path, name: str) -> Path:
    """`root / name`, for a name that somebody else wrote (a data set's table). Raises InputError if it leads out.

    Links: the root may be one, and so may the folders directly in it (`samples -> /big/disk/samples`): these a user
    makes. What lies below may not lead out of them, be it a linked file or a linked folder.
    """
    root = Path(os.path.abspath(root))
    file = root / name
    real = Path(os.path.realpath(file)) if os.path.islink(file) else _real(file.parent) / file.name
    places = [_real(root / folder) for folder in PurePosixPath(name).parents[-2:]]  # the root, and the folder in it
    if not names_inside(name) or not any(real.is_relative_to(place) for place in places):
        raise InputError(
            f"the tables of {root} name the file {name!r}, which leads outside the data set; download it again, or "
            "link whole folders of the root."
        )
    return file


@functools.lru_cache(1000)
def _real(folder: Path) -> Path:
    """Where a folder really is; kept, for a data set has few folders and a million files."""
    return Path(os.path.realpath(folder))  # `resolve` raises for links that go round


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 text file. Raises InputError if it is missing, unreadable or no such text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); restore the file from the data set.") from error
    except MemoryError as error:
        raise InputError(_too_large(path)) from error


def _too_large(path: str | Path) -> str:
    size = Path(path).stat().st_size / 1e9
    return f"{path} does not fit into memory ({size:,.0f} GB); restore the file from the data set."


def read_array(path: str | Path, dtype: str, columns: int = 1, rows: int | None = None) -> np.ndarray:
    """Read a headerless binary file as `[rows, columns]` (`[rows]` for one column) of `dtype`.

    Raises InputError if the file is missing, unreadable, no whole number of rows long, or not of `rows` rows.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; restore the file from the data set."
        ) from error
    except MemoryError as error:
        raise InputError(_too_large(path)) from error
    row = np.dtype(dtype).itemsize * columns
    if len(raw) % row:
        raise InputError(
            f"{path} is truncated: {len(raw)} bytes is no whole number of {row}-byte rows; download it again."
        )
    if rows is not None and len(raw) != rows * row:
        raise InputError(
            f"{path} has {len(raw) // row} entries for a scan of {rows} points; download the scan and this file again."
        )
    values = np.frombuffer(raw, dtype=dtype)
    return values.reshape(-1, columns) if columns > 1 else values


def read_points(path: str | Path, columns: int) -> np.ndarray:
    """Read a scan of `columns` float32 a point as `[N, 4]`: x, y, z in metres, intensity as stored. N may be 0.

    Raises InputError if the file cannot be used or one of the values is NaN or infinite: points are never dropped
    behind the user's back, since labels and predictions are matched to them by row.
    """
    points = read_array(path, "<f4", columns)[:, :4].copy()
    broken = np.count_nonzero(~np.isfinite(points).all(axis=1))
    if broken:
        raise InputError(
            f"{path} has NaN or infinity in {broken} of its {len(points)} points; download it again, or remove them "
            "from the scan and its labels."
        )
    return points


def read_image(path: str | Path, shrink: int = 1) -> np.ndarray:
    """An image file as RGB `[H, W, 3]` uint8, read-only; both sides divided by `shrink` (1, 2, 4 or 8) and rounded up.

    A pixel of a shrunk image is the mean of those it stands for. JPEG files are decoded at that scale to begin with,
    which takes a fraction of the time. Raises InputError if the file is missing or does not decode.
    """
    with _opened(path) as image:
        size = shrunk(image.size, shrink)
        if shrink > 1:
            image.draft("RGB", (max(image.width // shrink, 1), max(image.height // shrink, 1)))  # of JPEG files only
        image = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(image if image.size == size else image.reduce(shrink))  # np.array would copy it once more


def image_size(path: str | Path) -> tuple[int, int]:
    """Rows and columns of an image file, without decoding it. Raises InputError as `read_image` does."""
    with _opened(path) as image:
        return image.height, image.width


def shrunk(size: tuple[int, int], shrink: int) -> tuple[int, int]:
    """`size` divided by `shrink`, rounded up."""
    return -(-size[0] // shrink), -(-size[1] // shrink)


def open_image(path: str | Path) -> Image.Image:
    """A JPEG or PNG file, not decoded yet. Raises what Pillow raises, and ValueError above `MOST_PIXELS`.

    Of Pillow's other formats EPS would be handed to Ghostscript, and its own limit of pixels is a global that any
    library may lift.
    """
    image = Image.open(path, formats=("JPEG", "PNG"))
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(f"its header promises {image.width} x {image.height} pixels, no camera's image")
    return image


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with open_image(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say "broken"
        raise InputError(f"cannot decode the image {path} ({error}); download it again.") from error


def packed(content: dict) -> bytes:
    """What torch.save makes of a dictionary. In memory first: torch's own writing to a full disk ends in riddles."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()  # no copy; getbuffer()'s view in a traceback crashes Python 3.12's garbage collector


def write_tensors(path: str | Path, content: dict) -> None:
    """Write a dictionary of tensors and plain values to a torch file. Raises InputError if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(packed(content))


def read_tensors(path: str | Path, *nests: str) -> dict:
    """The dictionary in a torch file, or the first of the dictionaries `nests` inside it that there is.

    Raises InputError if the file is missing, is no checkpoint of plain tensors (nothing else is ever unpickled), or
    holds no dictionary with names as keys. Sparse, quantised and nested tensors, and those without data, are not plain.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not all(map(_is_plain, _tensors(content))):
            raise TypeError
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror or error}; name a checkpoint.") from error
    except Exception as error:  # torch.load raises a dozen types for files that are no checkpoint
        raise InputError(
            f"{path} is no checkpoint of plain tensors ({type(error).__name__}); name another file."
        ) from error
    inner = next((content[n] for n in nests if isinstance(content, dict) and isinstance(content.get(n), dict)), content)
    if not isinstance(inner, dict) or not all(isinstance(key, str) for key in inner):
        raise InputError(f"{path} holds no dictionary of weights; name another file.")
    return inner


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
