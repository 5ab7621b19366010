"""Image files: decoding, sizes, shrinking. Only JPEG and PNG are ever decoded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.files import InputError, open_file

MOST_PIXELS = 100_000_000  # of an image; a decompression bomb is a small file whose pixels fill the memory


def read_image(path: str | Path, shrink: int = 1) -> np.ndarray:
    """An image file as RGB `[H, W, 3]` uint8, read-only; both sides divided by `shrink` (1, 2, 4 or 8) and rounded up.

    Each pixel of a shrunk image is the mean of those it covers. JPEG files are decoded at the smaller scale, which
    takes a fraction of the time. Of 16 bits the upper eight are taken. Raises InputError if the file is missing or
    cannot be decoded.
    """
    with _opened(path) as image:
        size = shrunk(image.size, shrink)
        if shrink > 1:
            image.draft("RGB", (max(image.width // shrink, 1), max(image.height // shrink, 1)))  # JPEG files only
        if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
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

    Other formats stay closed because Pillow would hand EPS files to Ghostscript. Pillow's own limit on pixels is a
    global that any library may lift.
    """
    open_file(path).close()  # which refuses what may never end
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
    except UnidentifiedImageError as error:
        raise InputError(
            f"cannot decode the image {path}: it is neither a JPEG nor a PNG file, whatever its name; convert it, or "
            "download it again."
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say "broken"
        raise InputError(f"cannot decode the image {path} ({error}); download it again.") from error
