"""Dictionaries of tensors on disk. Nothing but plain tensors and plain values is ever unpickled."""

import io
from collections.abc import Iterator
from pathlib import Path

import torch

from data.files import InputError, atomic_write


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
