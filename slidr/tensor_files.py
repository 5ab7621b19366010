"""Dictionaries of tensors on disk. Nothing but plain tensors and plain values is ever unpickled."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from data.files import InputError, atomic_write, open_file, require_intact


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
    """The dictionary in a torch or safetensors file, or the innermost of the dictionaries `nests` inside it.

    Raises InputError if the file is missing, damaged (torch's archives carry checksums), no checkpoint of plain
    tensors, or holds no dictionary with names as keys. Sparse, quantised and nested tensors, those without data and
    those that claim more numbers than their file holds are not plain. No code in a file is run: numbers of NumPy,
    options and paths beside the weights are read as nothing, any other object is refused.
    """
    with open_file(path) as file:
        start = file.read(512)
        kind = next((kind for pattern, kind in _NO_WEIGHTS if re.match(pattern, start, re.IGNORECASE)), None)
        if kind:
            raise InputError(f"{path} {kind}")
        try:
            if start.startswith(b"PK"):
                require_intact(file)
            file.seek(0)
            content = _safetensors(file) if start[8:9] == b"{" else _unpickled(file)
            if not all(map(_is_plain, _tensors(content))):
                raise TypeError
        except (zipfile.BadZipFile, EOFError) as error:
            reason = error or "it ends too early"
            raise InputError(
                f"{path} is damaged, cut off or no checkpoint of plain tensors ({reason}); get it again."
            ) from error
        except Exception as error:  # torch.load raises a dozen types for files that are no checkpoint
            found = re.search(r"GLOBAL (\S+) was not an allowed|whose module (\S+) is blocked", str(error))
            reason = f"it holds the object {found[1] or found[2]}" if found else type(error).__name__
            remedy = "save a network's state_dict() instead" if found else "name another file"
            raise InputError(f"{path} is no checkpoint of plain tensors ({reason}); {remedy}.") from error
    while isinstance(content, dict) and (nest := next((n for n in nests if isinstance(content.get(n), dict)), None)):
        content = content[nest]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} holds no dictionary of weights; name another file.")
    return content


def as_weights(path: str | Path, tensors: dict[str, object]) -> dict[str, torch.Tensor]:
    """The tensors in float32. Raises InputError, naming the first, if one is not of finite floating-point numbers."""
    weights = {}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"{path}: `{name}` is no weight but {kind}; is it a checkpoint of this network?")
        weights[name] = value.float()
        if not bool(weights[name].isfinite().all()):
            raise InputError(f"{path}: `{name}` holds NaN or infinity; get the file again, or name an earlier one.")
    return weights


_NO_WEIGHTS = (  # how a file begins, and what it is then
    (rb"$", "is empty; get it again."),
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file that it stands for: run `git lfs pull`."),
    (
        rb"\s*<(!doctype|html|\?xml)",
        "is a web page, not the file: the server wants a login or has a quota; get it again.",
    ),
)


class _Unread:
    """Stands for what people's checkpoints hold beside the weights; whatever it is made of is thrown away."""

    def __new__(cls, *_: object) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


_BESIDE = [
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib{place}.{system}Path" for place in ("", "._local") for system in ("Posix", "Windows")),  # 3.13: _local
    *("numpy.dtype", "numpy.ndarray", "argparse.Namespace"),
]


def _unpickled(file: BinaryIO) -> object:
    with torch.serialization.safe_globals([(_Unread, name) for name in _BESIDE]):
        return torch.load(file, map_location="cpu", weights_only=True)


_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


def _safetensors(file: BinaryIO) -> dict[str, torch.Tensor]:
    """The tensors of a file in Hugging Face's format: the header's length in eight bytes, a JSON header, the data."""
    raw = bytearray(file.read())
    size = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            data = torch.frombuffer(raw[size + begin : size + end], dtype=_DTYPES[entry["dtype"]])
            tensors[name] = data.reshape(entry["shape"])
    return tensors


def _is_plain(tensor: torch.Tensor) -> bool:
    if not tensor.is_cpu or tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
