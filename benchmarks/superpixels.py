"""How fast are superpixel maps made, and how far do the faster ones agree with the published recipe's?

    python -m benchmarks.superpixels --root NUSCENES [--images 12]

Makes the maps of real images in every way that the settings offer, on one core, and takes scikit-image's SLIC with the
published settings at full size for the truth. Shrunk maps are enlarged by repeating pixels. Three figures, each of all
images together:

- boundary recall: the share of the truth's boundary pixels that have one of the map within 2 pixels, diagonals
  counting as one (Martin, Fowlkes, Malik, TPAMI 2004; with this tolerance, Neubert, Protzel, FWV 2012). 1 is best.
- achievable segmentation accuracy: the share of pixels that keep their superpixel if each superpixel of the map is
  given to that of the truth which it overlaps most (Liu et al., CVPR 2011). 1 is best.
- under-segmentation error: what superpixels of the map spill over borders of the truth, sum over all overlaps of the
  smaller of their parts inside and outside, as a share of the pixels (Neubert, Protzel 2012). 0 is best.

What do they mean? Yardsticks: scikit-image against itself, with one more pixel of blur, and with 144 or 165 segments
instead of 150, which move the grid that it starts from; and cells of a plain grid, which know nothing of the image.
Half images start from the same grid as whole ones (49 pixels for 98), quarter images do not (24 for 24.5). Seconds are
the process's, for all that `run.py superpixels` does with an image: decode, segment, write.
Prints a table and writes a JSON row under benchmarks/results/.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import skimage
import torch
from scipy.ndimage import maximum_filter
from skimage.segmentation import find_boundaries

from benchmarks import record
from data.datasets.nuscenes import NuScenes
from data.files import InputError
from data.images import read_image
from data.superpixels import SuperpixelSettings, compute, save

TOLERANCE = 2  # pixels
ALL_IMAGES = 205_000  # of nuScenes' 34,149 keyframes
SLIC = SuperpixelSettings()
FELZENSZWALB = SuperpixelSettings("felzenszwalb", sigma=0.35)
WAYS = {
    "scikit-image, published": SLIC,
    "scikit-image, 1/2": replace(SLIC, shrink=2),
    "scikit-image, 1/4": replace(SLIC, shrink=4),
    "torch": replace(SLIC, kind="slic_torch"),
    "torch, 1/2": replace(SLIC, kind="slic_torch", shrink=2),
    "torch, 1/4": replace(SLIC, kind="slic_torch", shrink=4),
    "Felzenszwalb": FELZENSZWALB,
    "Felzenszwalb, 1/2": replace(FELZENSZWALB, shrink=2),
    "Felzenszwalb, 1/4": replace(FELZENSZWALB, shrink=4),
    "yardstick: sigma 4": replace(SLIC, sigma=4.0),
    "yardstick: 144 segments": replace(SLIC, segments=144),
    "yardstick: 165 segments": replace(SLIC, segments=165),
}


def agreement(ids: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of a map and the true one, both `[H, W]`: boundary pixels found, of how many; pixels kept; spilt; of how many."""
    borders, wanted = find_boundaries(ids), find_boundaries(truth)
    found = maximum_filter(borders, 2 * TOLERANCE + 1)[wanted].sum()
    overlap = np.zeros((ids.max() + 1, truth.max() + 1), np.int64)
    np.add.at(overlap, (ids.ravel(), truth.ravel()), 1)
    outside = overlap.sum(1, keepdims=True) - overlap
    return np.array([found, wanted.sum(), overlap.max(1).sum(), np.minimum(overlap, outside).sum(), ids.size])


def made(file: Path, settings: SuperpixelSettings, folder: Path) -> tuple[np.ndarray, float]:
    """The map of an image file, and the seconds of the processor that it took."""
    began = time.process_time()
    ids = compute(read_image(file, settings.shrink), settings)
    save(folder / "map.png", ids)
    return ids, time.process_time() - began


def grid(size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """A map `[H, W]` of equal rectangles."""
    row, column = (np.arange(n) * c // n for n, c in zip(size, cells, strict=True))
    return row[:, None] * cells[1] + column


def measure(files: list[Path]) -> dict[str, dict[str, float]]:
    """Of each way: seconds an image, superpixels an image, and the three figures."""
    rows = {name: [] for name in [*WAYS, "yardstick: plain grid"]}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            for name, settings in WAYS.items():
                ids, seconds = made(file, settings, Path(folder))
                if settings == SLIC:
                    truth = ids
                ids = ids.repeat(settings.shrink, 0).repeat(settings.shrink, 1)[: len(truth), : truth.shape[1]]
                rows[name].append([seconds, ids.max() + 1, *agreement(ids, truth)])
            plain = grid(truth.shape, (9, 12))  # as many as SLIC leaves of its 150
            rows["yardstick: plain grid"].append([np.nan, plain.max() + 1, *agreement(plain, truth)])
    result = {}
    for name, values in rows.items():
        seconds, count, found, wanted, kept, spilt, pixels = np.mean(values, 0)
        result[name] = {
            "superpixels": count,
            "boundary_recall": found / wanted,
            "achievable_accuracy": kept / pixels,
            "under_segmentation": spilt / pixels,
        }
        if name in WAYS:
            result[name] |= {"seconds": seconds, "cpu_hours": seconds * ALL_IMAGES / 3600}
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="datasets/nuscenes", help="a nuScenes folder, or a part of one")
    parser.add_argument("--images", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        files = [file for _, file in NuScenes(options.root, "all").image_files()][: options.images]
    except InputError as error:
        raise SystemExit(f"superpixels: {error}") from error
    results = measure(files)
    print(f"superpixels of {len(files)} images, one core of {record.processor()}; recall within {TOLERANCE} pixels\n")
    print(f"| | images/s | CPU-hours for {ALL_IMAGES:,} | superpixels | boundary recall | ASA | under-segmentation |")
    print("|---|---|---|---|---|---|---|")
    for name, r in results.items():
        speed = f"{1 / r['seconds']:.2f} | {r['cpu_hours']:.1f}" if name in WAYS else "– | –"
        figures = [f"{r[key]:.3f}" for key in ("boundary_recall", "achievable_accuracy", "under_segmentation")]
        print(f"| {name} | {speed} | {r['superpixels']:.0f} | {' | '.join(figures)} |")
    record.write("superpixels", {"scikit-image": skimage.__version__, "images": len(files), "results": results})


if __name__ == "__main__":
    main()
