"""One HTML page to turn frames around in, without a server or a network: packed here, drawn by page.html.

Features go into the page as 16 dimensions of int8: projections onto the largest directions of an uncentred principal
component analysis, so that inner products, the cosines of unit vectors, are kept as well as 16 numbers can.
"""

import base64
import io
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from data.boxes import Boxes, corners
from data.files import atomic_write
from data.frame import CameraView, Frame
from slidr.box_pictures import EDGES
from slidr.pictures import visible

DIMENSIONS = 16
PICTURE = 640  # columns of a camera's picture in the page
QUERIES, SAMPLE = 50, 5000  # points whose similarities to others are ranked, and how many others
LINES = np.concatenate((EDGES, [(0, 7), (3, 4)]))  # of a box: its edges, and a cross on its front
_MARK = "<!-- data -->"


@dataclass
class Shown:
    """One frame of the page.

    Attributes:
        frame: points, labels if there are any, cameras with superpixels if there are maps, pairs.
        scene: its scene's name.
        features: `[N, C]` unit vectors (float16 suffices) of its points.
        prediction: `[N]` train ids, of a segmentation network.
        pixels: `[cameras, h, w, C]` unit vectors in the points' feature space.
        boxes: "true" and "found" -> boxes, and RGB uint8 `[K, 3]` by their labels; where both are there, the true ones
            are white.
    """

    frame: Frame
    scene: str
    features: np.ndarray
    prediction: np.ndarray | None = None
    pixels: np.ndarray | None = None
    boxes: dict[str, tuple[Boxes, np.ndarray]] = field(default_factory=dict)


class Basis:
    """The 16 directions, and the steps of int8 along each.

    Args:
        features: arrays `[N, C]` of unit vectors, whose directions are kept.
        others: arrays `[..., C]` that must fit into the steps, too (pixels).

    Attributes:
        variance: share of the squared length of `features` that is kept.
        scale: `[16]` what 1 means along each direction.
    """

    def __init__(self, features: list[np.ndarray], others: Iterable[np.ndarray] = ()):
        moment = sum(f.T @ f for f in (f.astype(np.float32) for f in features)).astype(np.float64)
        values, vectors = np.linalg.eigh(moment)
        self.variance = float(values[-DIMENSIONS:].sum() / values.sum())
        self._vectors = np.zeros((len(moment), DIMENSIONS), np.float32)
        kept = vectors[:, ::-1][:, :DIMENSIONS]
        self._vectors[:, : kept.shape[1]] = kept
        largest = [np.abs(self._project(f)).reshape(-1, DIMENSIONS).max(0) for f in (*features, *others) if f.size]
        self.scale = np.maximum(np.max(largest, axis=0), 1e-6) / 127

    def pack(self, features: np.ndarray) -> np.ndarray:
        """`[..., C]` -> `[16, ...]` int8; times `scale` they are the projections."""
        return np.moveaxis(np.round(self._project(features) / self.scale).astype(np.int8), -1, 0)

    def _project(self, features: np.ndarray) -> np.ndarray:
        return features.astype(np.float32) @ self._vectors

    def rank_correlation(self, features: np.ndarray, rng: np.random.Generator) -> float:
        """Spearman's, of similarities in the page with exact cosines; the mean over queries drawn from `features`."""
        rows = rng.permutation(len(features))[:SAMPLE]
        exact = features[rows].astype(np.float32)
        kept = self.pack(exact).T * self.scale
        queries = range(min(QUERIES, len(rows)))
        return float(np.mean([spearmanr(exact @ exact[q], kept @ kept[q]).statistic for q in queries]))

    def colours(self, features: np.ndarray) -> list[list[float]]:
        """Of red, green, blue: 16 weights of the int8 numbers and an offset, for a value in 0..1.

        They are the largest centred components of `features` `[N, C]`, 96 per cent of whose values fill the range.
        """
        packed = self.pack(features).T * self.scale
        axes = np.linalg.eigh(np.cov(packed.T))[1][:, :-4:-1]
        low, high = np.quantile(packed @ axes, (0.02, 0.98), axis=0)
        axes, low = axes / np.maximum(high - low, 1e-6), low / np.maximum(high - low, 1e-6)
        return [[*(axes[:, k] * self.scale), -low[k]] for k in range(3)]


def write_page(
    path: Path,
    shown: list[Shown],
    about: list[str],
    classes: tuple[tuple[str, ...], np.ndarray],
    predicted: tuple[tuple[str, ...], np.ndarray] | None,
    seed: int,
) -> str:
    """Write the page; what to say of it: points, bytes, and what the 16 dimensions keep.

    Args:
        path: the HTML file.
        shown: its frames, one at least.
        about: sentences for the page on data and model.
        classes: names and RGB uint8 `[K, 3]` by train id, of the labels.
        predicted: the same of the predictions; None = there are none.
        seed: of the sample in which ranks are compared.
    """
    everything = [s.features for s in shown]
    basis = Basis(everything, [s.pixels for s in shown if s.pixels is not None])
    rng = np.random.default_rng(seed)
    sample = np.concatenate([f[rng.permutation(len(f))[: SAMPLE // len(shown) + 1]] for f in everything])
    ranks, channels = basis.rank_correlation(sample, rng), sample.shape[1]
    keeps = (
        f"Features are stored as {min(DIMENSIONS, channels)} of {channels} dimensions in 8 bits, which keep "
        f"{100 * basis.variance:.1f} % of their variance; similarities rank like exact ones (correlation {ranks:.3f})."
    )
    brightest = max(float(np.quantile(s.frame.points[:, 3], 0.99)) for s in shown if len(s.frame.points)) or 1.0
    frames, blocks = [], []
    for s in shown:
        points, pictures = _points(s, basis, brightest), _pixels(s, basis)
        frames.append(
            {
                "id": s.frame.id,
                "scene": s.scene,
                "points": len(s.frame.points),
                "reach": _reach(s.frame),
                "layout": [_layout(points), _layout(pictures)],
                "cameras": [_camera(s, i) for i in range(len(s.frame.cameras))],
            }
        )
        blocks.append((_block(points), _block(pictures)))
    facts = {
        "about": [*about, keeps],
        "classes": _legend(*classes),
        "predicted": predicted and _legend(*predicted),
        "comparable": predicted is not None and predicted[0] == classes[0],
        "scale": basis.scale.tolist(),
        "colours": basis.colours(sample),
        "intensity": brightest,
        "heading": float(np.arctan2(*shown[0].frame.forward[::-1])),
        "maps": {
            name: np.round(np.array(matplotlib.colormaps[name].colors) * 255).tolist() for name in ("viridis", "turbo")
        },
        "boxes": [kind for kind in ("found", "true") if any(kind in s.boxes for s in shown)],
        "frames": frames,
    }
    head, tail = (Path(__file__).parent / "page.html").read_text(encoding="utf-8").split(_MARK)
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f'{head}<script type="application/json" id="facts">{script_json(facts)}</script>\n')
        for i, block in enumerate(blocks):
            for kind, text in zip(("points", "pixels"), block, strict=True):
                file.write(f'<script type="text/plain" id="{kind}-{i}">{text}</script>\n')
        file.write(tail)
    count = sum(len(s.frame.points) for s in shown)
    each = sum(len(block[0]) for block in blocks) / max(count, 1)
    return f"{count:,} points, {each:.1f} bytes each; {path.stat().st_size / 1e6:.1f} MB with pictures. {keeps}"


def script_json(value: object) -> str:
    """JSON that can stand in a script element of a page: no text in it can end the element or a line of it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and U+2029 are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _points(s: Shown, basis: Basis, brightest: float) -> dict[str, np.ndarray]:
    """What the page knows of a frame's points and of the pixels that see them, by name."""
    frame = s.frame
    arrays = {
        "places": np.round(frame.points[:, :3].T / _reach(frame) * 32767).astype(np.int16),
        "features": basis.pack(s.features),
        "intensity": np.clip(np.round(frame.points[:, 3] / brightest * 255), 0, 255).astype(np.uint8),
    }
    if s.prediction is not None:
        arrays["prediction"] = s.prediction.astype(np.uint8)
    if frame.labels is not None:
        arrays["truth"] = frame.labels
    colour = np.zeros((len(frame.points), 3), np.uint8)
    for i, view in enumerate(frame.cameras):
        seen = frame.pairs.select(frame.pairs.camera == i)
        arrays[f"seen{i}"] = np.diff(seen.point, prepend=0).astype(np.uint32)  # small numbers, which deflate well
        arrays[f"row{i}"], arrays[f"column{i}"] = seen.row.astype(np.uint16), seen.column.astype(np.uint16)
        if view.superpixels is not None:
            colour[seen.point] = np.maximum(_superpixel_colour(view, seen.row, seen.column), 1)  # 0 = not seen
    for kind, (boxes, shades) in s.boxes.items():
        white = kind == "true" and "found" in s.boxes
        shade = np.full((len(boxes), 3), 255) if white else 255 * visible(shades)[boxes.label]
        arrays[f"{kind}Lines"] = corners(boxes)[:, LINES].astype(np.float32)
        arrays[f"{kind}Shades"] = np.repeat(np.round(shade), 2 * len(LINES), axis=0).astype(np.uint8)
    return arrays | {"colour": colour.T}


def _superpixel_colour(view: CameraView, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Mean colour `[M, 3]` of the superpixel at each pixel; the map may be a shrunk one."""
    shrink = round(view.size[0] / view.superpixels.shape[0])
    ids = np.unique(view.superpixels, return_inverse=True)[1].reshape(view.superpixels.shape)
    image = view.image[::shrink, ::shrink].reshape(-1, 3)
    means = [np.bincount(ids.ravel(), image[:, c]) / np.bincount(ids.ravel()) for c in range(3)]
    return np.stack(means, 1)[ids[row // shrink, column // shrink]]


def _pixels(s: Shown, basis: Basis) -> dict[str, np.ndarray]:
    """Features of each camera's picture, by name."""
    return {f"map{i}": basis.pack(pixels) for i, pixels in enumerate(() if s.pixels is None else s.pixels)}


def _camera(s: Shown, i: int) -> dict:
    """Name, size in the pixels of the pairs, picture, and rows and columns of its features."""
    view = s.frame.cameras[i]
    rows, columns = view.size
    picture = io.BytesIO()
    Image.fromarray(view.image).resize((PICTURE, round(PICTURE * rows / columns))).save(picture, "JPEG", quality=80)
    data = base64.b64encode(picture.getvalue()).decode()
    cells = None if s.pixels is None else list(s.pixels.shape[1:3])
    return {"name": view.name, "size": [rows, columns], "picture": f"data:image/jpeg;base64,{data}", "cells": cells}


def _layout(arrays: dict[str, np.ndarray]) -> list[tuple[str, str, int]]:
    """Name, kind and length of each array, as JavaScript has them."""
    return [(n, f"{a.dtype.name.capitalize()}Array", a.size) for n, a in arrays.items()]


def _block(arrays: dict[str, np.ndarray]) -> str:
    """All arrays in a row, deflated, as text."""
    together = b"".join(np.ascontiguousarray(a).astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays.values())
    return base64.b64encode(zlib.compress(together, 9)).decode()


def _legend(names: tuple[str, ...], colours: np.ndarray) -> list[tuple[str, list[int]]]:
    """Names with their colours as the dark page shows them."""
    return list(zip(names, np.round(255 * visible(colours)).astype(int).tolist(), strict=True))


def _reach(frame: Frame) -> float:
    """Metres that the largest of the 16-bit coordinates stands for."""
    return float(np.abs(frame.points[:, :3]).max(initial=1))
