"""Reading and writing files so that bad input is one clear sentence and nothing is ever half-written."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


class InputError(Exception):
    """The user's input cannot be used. The message is one sentence: what, where, what to do (run.py exits with 2)."""


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


def read_array(path: str | Path, dtype: str, columns: int = 1) -> np.ndarray:
    """Read a headerless binary file as `[rows, columns]` (`[rows]` for one column) of `dtype`.

    Raises InputError if the file is missing, unreadable, or no whole number of rows long.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; restore the file from the data set."
        ) from error
    row = np.dtype(dtype).itemsize * columns
    if len(raw) % row:
        raise InputError(
            f"{path} is truncated: {len(raw)} bytes is no whole number of {row}-byte rows; download it again."
        )
    values = np.frombuffer(raw, dtype=dtype)
    return values.reshape(-1, columns) if columns > 1 else values


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as RGB `[H, W, 3]` uint8. Raises InputError if it is missing or does not decode."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three for broken files
        raise InputError(f"cannot decode the image {path} ({error}); download it again.") from error
