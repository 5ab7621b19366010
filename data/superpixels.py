"""Superpixel maps: computed by scikit-image, stored in the field's PNG layout, or made by others and dropped in."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb, slic
from tqdm import tqdm

from data.disk import InputError, atomic_write, read_image
from data.frame import CameraView


@dataclass(frozen=True)
class SuperpixelSettings:
    """What decides a map; the defaults are SLidR's, for 1600 x 900 images.

    kind: "slic", "felzenszwalb" or "none" (every pixel its own superpixel).
    segments, compactness: of SLIC.
    sigma: Gaussian blur beforehand, in pixels; published: 3 for SLIC, 0.35 for Felzenszwalb.
    scale, min_size: of Felzenszwalb, the latter in pixels.
    """

    kind: str = "slic"
    segments: int = 150
    compactness: float = 6.0
    sigma: float = 3.0
    scale: float = 300.0
    min_size: int = 4000


def compute(image: np.ndarray, settings: SuperpixelSettings) -> np.ndarray:
    """Superpixel ids `[H, W]` int32, from 0 on, of an image `[H, W, 3]` uint8."""
    if settings.kind == "none":
        return np.arange(image.shape[0] * image.shape[1], dtype=np.int32).reshape(image.shape[:2])
    if settings.kind == "felzenszwalb":
        ids = felzenszwalb(image, scale=settings.scale, sigma=settings.sigma, min_size=settings.min_size)
    else:
        ids = slic(
            image,
            n_segments=settings.segments,
            compactness=settings.compactness,
            sigma=settings.sigma,
            start_label=0,
        )
    return ids.astype(np.int32)


PUBLISHED = {"slic": (150, 6.0, 3.0), "felzenszwalb": (300.0, 0.35, 4000)}


def map_path(folder: Path, settings: SuperpixelSettings, token: str) -> Path:
    """Where the map of an image lies: `<folder>/superpixels_<kind>/<token>.png` under the published settings.

    Other settings stand in the folder's name (`superpixels_slic_100_6_1`): maps of one never pass for another's.
    """
    s, title = settings, settings.kind
    values = (s.segments, s.compactness, s.sigma) if title == "slic" else (s.scale, s.sigma, s.min_size)
    if values != PUBLISHED[title]:
        title += "".join(f"_{value:g}" for value in values)
    return folder / f"superpixels_{title}" / f"{token}.png"


def save(path: Path, ids: np.ndarray) -> None:
    """Write ids `[H, W]` as PNG: 8 bits where they fit, else 16. Raises InputError beyond 65,536 ids."""
    if ids.max(initial=0) > 65535:
        raise InputError(f"{path}: {ids.max() + 1} superpixels do not fit a PNG; make them larger.")
    with atomic_write(path) as temporary:
        Image.fromarray(ids.astype(np.uint8 if ids.max(initial=0) < 256 else np.uint16)).save(temporary, format="PNG")


def load(path: Path, size: tuple[int, int], image: str) -> np.ndarray:
    """Read a map `[H, W]` int32. Raises InputError if it does not decode or is not of the `size` of its `image`."""
    try:
        with Image.open(path) as file:
            ids = np.asarray(file).astype(np.int32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say "broken"
        raise InputError(
            f"cannot decode the superpixel map {path} ({error}); remove it to have it made anew."
        ) from error
    if ids.shape != tuple(size):
        raise InputError(
            f"the superpixel map {path} has {' x '.join(map(str, ids.shape))} pixels, its image {image} has "
            f"{size[0]} x {size[1]}; remove it to have it made anew."
        )
    return ids


def load_or_compute(view: CameraView, folder: Path, settings: SuperpixelSettings) -> np.ndarray:
    """The stored map `[H, W]` int32 of a camera's image; made and stored if there is none ("none" is never stored).

    Raises InputError for a stored map that cannot be used or a folder that cannot be written.
    """
    if settings.kind == "none":
        return compute(view.image, settings)
    path = map_path(folder, settings, view.token)
    if path.exists():
        return load(path, view.image.shape[:2], f"{view.name} {view.token}")
    ids = compute(view.image, settings)
    save(path, ids)
    return ids


def compute_all(image_files: list[tuple[str, Path]], folder: Path, settings: SuperpixelSettings, workers: int) -> int:
    """Make every missing map with `workers` processes (0 = this one); how many were made.

    A map on disk is a whole one, so a killed run goes on where it was. Several machines share the work by passing a
    part of `image_files` each. Raises InputError for an image that does not decode.
    """
    if settings.kind == "none":
        return 0
    missing = [(t, f) for t, f in image_files if not map_path(folder, settings, t).exists()]
    jobs = [(token, file, folder, settings) for token, file in missing]
    progress = {"total": len(jobs), "desc": f"superpixels ({settings.kind})", "unit": "image"}
    if workers == 0:
        return sum(1 for _ in tqdm(map(_compute_one, jobs), **progress))
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return sum(1 for _ in tqdm(pool.map(_compute_one, jobs, chunksize=4), **progress))


def _compute_one(job: tuple[str, Path, Path, SuperpixelSettings]) -> None:
    token, file, folder, settings = job
    save(map_path(folder, settings, token), compute(read_image(file), settings))
