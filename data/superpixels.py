"""Superpixel maps: computed, stored in the field's PNG layout, or made by others and dropped in."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from skimage.segmentation import felzenszwalb, slic
from torch.utils.data import DataLoader, Dataset

from data.files import InputError, atomic_write, read_array
from data.frame import CameraView
from data.images import open_image, read_image, shrunk
from data.progress import Progress
from data.slic import slic as slic_torch
from data.workers import results


@dataclass(frozen=True)
class SuperpixelSettings:
    """What decides a map; the defaults are SLidR's, for 1600 x 900 images.

    kind: "slic", "slic_torch" (`data.slic`: faster, other maps), "felzenszwalb" or "none" (every pixel its own
        superpixel); any other name is that of maps that others made (`data.map_files`).
    segments, compactness: of SLIC, both of them.
    sigma: Gaussian blur beforehand, in pixels; published: 3 for SLIC, 0.35 for Felzenszwalb.
    scale, min_size: of Felzenszwalb, the latter in pixels.
    shrink: 1 as published; 2 or 4 = maps of images at that part of their size (`data.files.read_image`), stored so.
        Lengths and areas above still count in pixels of the whole image. benchmarks/superpixels.py measures how much
        faster they are, and slic_torch is, and how far they agree with the published ones.
    zero: "none" = pixels with the id 0 belong to no superpixel; of others' maps.
    ids: "frame" = the same id in two cameras of a frame is one superpixel, "image" = it is two; of others' maps.
    """

    kind: str = "slic"
    segments: int = 150
    compactness: float = 6.0
    sigma: float = 3.0
    scale: float = 300.0
    min_size: int = 4000
    shrink: int = 1
    zero: Literal["superpixel", "none"] = "superpixel"
    ids: Literal["image", "frame"] = "image"

    def __str__(self) -> str:
        zero = ", 0 is none" if self.zero == "none" else ""
        return self.kind + zero + (", ids shared by the cameras of a frame" if self.ids == "frame" else "")


def compute(image: np.ndarray, settings: SuperpixelSettings) -> np.ndarray:
    """Superpixel ids `[H, W]` int32, from 0 on, of an image `[H, W, 3]` uint8 that is shrunk as the settings say."""
    sigma = settings.sigma / settings.shrink
    if settings.kind == "none":
        return np.arange(image.shape[0] * image.shape[1], dtype=np.int32).reshape(image.shape[:2])
    if settings.kind == "felzenszwalb":
        min_size = settings.min_size // settings.shrink**2
        ids = felzenszwalb(image, scale=settings.scale / settings.shrink**2, sigma=sigma, min_size=min_size)
    elif settings.kind == "slic_torch":
        ids = slic_torch(torch.tensor(image), settings.segments, settings.compactness, sigma).numpy()
    else:
        ids = slic(
            image,
            n_segments=settings.segments,
            compactness=settings.compactness,
            sigma=sigma,
            start_label=0,
        )
    return ids.astype(np.int32)


MOST = 65535  # largest id that our PNG files hold
_MADE_FROM = "made from"  # key of a PNG's text: the checksum of the image of a map
PUBLISHED = {"slic": (150, 6.0, 3.0), "slic_torch": (150, 6.0, 3.0), "felzenszwalb": (300.0, 0.35, 4000)}
COMPUTED = *PUBLISHED, "none"


def map_path(folder: Path, settings: SuperpixelSettings, token: str) -> Path:
    """Where the map of an image lies: `<folder>/superpixels_<kind>/<token>.png` under the published settings.

    Other settings stand in the folder's name (`superpixels_slic_100_6_1`, `superpixels_slic_shrink2`): maps of one
    never pass for another's.
    """
    s, title = settings, settings.kind
    values = (s.segments, s.compactness, s.sigma) if title in ("slic", "slic_torch") else (s.scale, s.sigma, s.min_size)
    if values != PUBLISHED.get(title, values):
        title += "".join(f"_{value:g}" for value in values)
    if s.shrink > 1:
        title += f"_shrink{s.shrink}"
    return folder / f"superpixels_{title}" / f"{token}.png"


def save(path: Path, ids: np.ndarray, image: Path | None = None) -> None:
    """Write ids `[H, W]` as PNG: 8 bits where they fit, else 16. Raises InputError beyond 65,536 ids.

    The checksum of the `image` file that they are of goes with them.
    """
    if ids.max(initial=0) > MOST:
        raise InputError(f"{path}: {ids.max() + 1} superpixels do not fit a PNG; make them larger.")
    with atomic_write(path) as temporary:
        text = {_MADE_FROM: checksum(image)} if image else {}
        temporary.write_bytes(_png(ids.astype(np.uint8 if ids.max(initial=0) < 256 else ">u2"), text))


def checksum(image: Path) -> str:
    """Of an image file's bytes. Raises InputError if it cannot be read."""
    return f"crc32 {zlib.crc32(read_array(image, 'u1')):08x}"


def _png(grey: np.ndarray, text: dict[str, str]) -> bytes:
    """A grey image `[H, W]` of 8 or 16 bits (big-endian) as PNG without filters, as Pillow cannot write it.

    Filters are for photographs: maps without them are smaller and are read in a third of the time.
    """
    (rows, columns), depth = grey.shape, 8 * grey.itemsize

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    lines = np.pad(grey.view(np.uint8).reshape(rows, -1), ((0, 0), (1, 0)))  # each begins with its filter, 0 = none
    header = struct.pack(">IIBBBBB", columns, rows, depth, 0, 0, 0, 0)
    texts = [(b"tEXt", f"{name}\0{value}".encode("latin-1")) for name, value in text.items()]
    parts = (b"IHDR", header), *texts, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


_AGAIN = "remove it to have it made anew, or import others' maps by `run.py superpixels --maps FOLDER`"


def load(path: Path, size: tuple[int, int], image: str) -> np.ndarray:
    """Read a map `[H, W]` as stored: uint8, uint16 or int32.

    Raises InputError if it does not decode, is a JPEG, or is not of the `size` of its `image`.
    """
    try:
        with open_image(path) as file:
            if file.format != "PNG":
                raise ValueError(f"a {file.format} file, which blurs ids; maps are PNG files of grey values")
            ids = np.asarray(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say "broken"
        raise InputError(f"cannot decode the superpixel map {path} ({error}); {_AGAIN}.") from error
    ids = ids.astype(np.uint8) if ids.dtype == bool else ids
    if ids.shape != tuple(size):
        raise InputError(
            f"the superpixel map {path} has {' x '.join(map(str, ids.shape))} pixels, its image {image} has "
            f"{size[0]} x {size[1]}; {_AGAIN}."
        )
    return ids


def _made_from(path: Path) -> str | None:
    """The checksum of the image that a map was made from; None if there is no map, or one that others made."""
    try:
        with open_image(path) as file:
            return file.info.get(_MADE_FROM)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _is_there(path: Path, image: Path | None) -> bool:
    """Whether there is a map of an image file; one of another image of that name, in another data set, is none."""
    return path.exists() and (image is None or _made_from(path) in (None, checksum(image)))


def load_or_compute(
    view: CameraView, folder: Path, settings: SuperpixelSettings, remarks: dict[str, str] | None = None
) -> np.ndarray:
    """The stored map of a camera's image (see `load`); made and stored if there is none ("none" is never stored).

    Where 0 is no superpixel ids are int32 and begin at -1, which is none.

    A map that was made from another image is made anew. Of a map that others made, and that nobody imported, this is
    not known; it is used, and `remarks` (`data.samples.Notes`) gains a line that says so. Raises InputError for a
    stored map that cannot be used, a missing one of a kind that is not computed, or a folder that cannot be written.
    """
    if settings.kind == "none":
        return compute(view.image, settings)
    path, size = map_path(folder, settings, view.token), shrunk(view.size, settings.shrink)
    if _is_there(path, view.file):
        if remarks is not None and _made_from(path) is None:
            remarks["maps"] = f"{path} does not say which image it was made from; it has the right size and is used."
        ids = load(path, size, f"{view.name} {view.token}")
        return ids.astype(np.int32) - 1 if settings.zero == "none" else ids
    if settings.kind not in COMPUTED:
        raise InputError(f"{path} is missing, or of another image than {view.file}; {_import(settings)}.")
    image = view.image if view.image.shape[:2] == size else read_image(view.file, settings.shrink)
    ids = compute(image, settings)
    save(path, ids, view.file)
    return ids


def require_maps(folder: Path, settings: SuperpixelSettings) -> None:
    """Raise InputError if maps are of a kind that is not computed, and there are none."""
    place = map_path(folder, settings, "").parent
    if settings.kind not in COMPUTED and not place.is_dir():
        raise InputError(
            f"there is no folder {place}, and only {', '.join(PUBLISHED)} are computed; {_import(settings)}."
        )


def _import(settings: SuperpixelSettings) -> str:
    return f"import maps that others made by `run.py superpixels --superpixels {settings.kind} --maps FOLDER`"


def compute_all(image_files: list[tuple[str, Path]], folder: Path, settings: SuperpixelSettings, workers: int) -> int:
    """Make every missing map with `workers` processes (0 = this one); how many were made.

    A map on disk is complete, so a killed run goes on where it was. Several machines share the work by passing a
    part of `image_files` each. Raises InputError for an image that does not decode and for a worker that dies.
    """
    if settings.kind == "none":
        return 0
    return count_true(_Maps(image_files, folder, settings), f"superpixels ({settings.kind})", workers)


def count_true(maps: Dataset, title: str, workers: int) -> int:
    """How many items of `maps`, each True, False or an InputError, are True; `workers` processes make them."""
    loader, count = DataLoader(maps, batch_size=None, num_workers=workers), 0
    with Progress(total=len(maps), desc=title, unit="image") as bar:
        for new in results(loader):
            count += new
            bar.update()
    return count


@dataclass
class _Maps(Dataset):
    """Item i -> whether the map of image i was made now, or why it cannot be."""

    images: list[tuple[str, Path]]
    folder: Path
    settings: SuperpixelSettings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> bool | InputError:
        token, file = self.images[index]
        try:
            path = map_path(self.folder, self.settings, token)
            if _is_there(path, file):
                return False
            save(path, compute(read_image(file, self.settings.shrink), self.settings), file)
        except InputError as error:
            return error
        return True
