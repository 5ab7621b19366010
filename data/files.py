"""Files: bad input becomes one clear sentence, and nothing is ever half-written."""

import contextlib
import functools
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np


class InputError(Exception):
    """The user's input cannot be used. The message is one sentence: what, where, what to do (run.py exits with 2)."""


class DataGone(InputError):
    """The data set's folder has disappeared, so that no other frame can be read either."""


def printable(text: object, most: int = 400) -> str:
    """Text from outside as one line for a terminal or a page: control characters escaped, the middle cut if too long.

    Without this a name could retitle the terminal, and one from a checkpoint fill it.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


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


def remove_torn(folder: Path) -> None:
    """Remove what `atomic_write` left in a folder when its process was killed. Nobody else may be writing there."""
    for torn in folder.glob(".*"):
        if torn.is_file():
            torn.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, in UTF-8 whatever the locale, by `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # paths may hold what is no Unicode


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
    """Turn an InputError into DataGone if `folder`, where the files lie, is gone, or empty as an unmounted disk is."""
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
    """Whether `name` is a relative path that stays below the folder it is relative to; links are not followed.

    Control characters are refused: they can end a path, or control the terminal on which they are printed.
    """
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name.isprintable()


def inside(root: Path, name: str) -> Path:
    """`root / name`, for a name from a data set's tables. Raises InputError if it leads out of the root.

    The root may be a link, and so may the folders directly in it (`samples -> /big/disk/samples`): users set these up.
    Links to files or folders further down must not lead out of them.
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
    """The folder with all links followed; cached, because a data set has few folders and a million files."""
    return Path(os.path.realpath(folder))  # `resolve` raises for circular links


def open_file(path: str | Path, most: int | None = None, *, follow: bool = True) -> BinaryIO:
    """A regular file, open to be read. A FIFO or a device, which may never end, is none.

    Args:
        path: of the file.
        most: bytes that it may have; None = any number.
        follow: whether the path may be a link. Those of users are followed; in a run's folder nobody makes any.

    Raises InputError if it cannot be opened, is no regular file, or is too long.
    """
    try:  # without waiting: a FIFO would be opened once somebody writes to it
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; restore the file, or name another.") from error
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and (most is None or found.st_size <= most):
        return open(handle, "rb")
    os.close(handle)
    what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device, no regular file"
    if stat.S_ISREG(found.st_mode):
        what = f"longer than such a file can be ({found.st_size:,} bytes)"
    raise InputError(f"cannot read {path}: it is {what}; restore the file, or name another.")


def require_intact(archive: BinaryIO) -> None:
    """Raise zipfile.BadZipFile unless a zip's checksums fit and it holds no more than its own size.

    torch and NumPy compress none of theirs, so that one which claims more is made to fill the memory.
    """
    with zipfile.ZipFile(archive) as opened:
        if sum(member.file_size for member in opened.infolist()) > archive.seek(0, os.SEEK_END):
            raise zipfile.BadZipFile("it claims to hold more than its own size")
        if damaged := opened.testzip():
            raise zipfile.BadZipFile(f"{damaged} has another checksum")


def read_text(path: str | Path, most: int | None = None, *, follow: bool = True) -> str:
    """The content of a UTF-8 text file, without its byte order mark; arguments as those of `open_file`.

    Raises InputError if it cannot be read as such.
    """
    try:
        with open_file(path, most, follow=follow) as file:
            return file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); restore the file from the data set.") from error
    except MemoryError as error:
        raise InputError(_too_large(path)) from error


def read_json(path: str | Path, keep: Callable[[dict], object] | None = None) -> object:
    """The content of a JSON file; `keep` is json's `object_hook`. Raises InputError if it is no readable JSON."""
    try:
        return json.loads(read_text(path), object_hook=keep)
    except (ValueError, RecursionError) as error:  # besides JSON's own errors, numbers of thousands of digits
        raise InputError(f"{path} is no JSON ({error}); download it again.") from error


def _too_large(path: str | Path) -> str:
    size = Path(path).stat().st_size / 1e9
    return f"{path} does not fit into memory ({size:,.0f} GB); restore the file from the data set."


def read_array(path: str | Path, dtype: str, columns: int = 1, rows: int | None = None) -> np.ndarray:
    """Read a binary file without a header as `[rows, columns]` (`[rows]` for one column) of `dtype`.

    Raises InputError if the file is missing, unreadable, no whole number of rows long, or not of `rows` rows.
    """
    path = Path(path)
    try:
        with open_file(path) as file:
            raw = file.read()
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
