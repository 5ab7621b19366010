"""Augmentations of cloud and images that keep the point-pixel pairs right (supplement, section A).

Parameters are drawn in one place and applied in another: a run is reproducible by seed, a test can impose them.
Every draw is bounded: what cannot succeed ends as the whole image, or as no cuboid.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from data.frame import CameraView, Frame, Pairs

DRAWS = 10  # of a crop or a cuboid, before giving up
ENOUGH_SHARE = 0.75  # of an image's pairs: a crop that keeps more is accepted whatever their number
AREA = (0.3, 1.0)
ASPECT = (14 / 9, 17 / 9)

Box = tuple[int, int, int, int]  # top row, left column, rows, columns


@dataclass(frozen=True)
class AugmentSettings:
    """What to draw.

    crop: rows and columns of every image after resizing; None = images stay as they are.
    train: False = the whole image resized, nothing else.
    cuboid: largest side of the dropped cuboid as a share of the cloud's range; 0 = none.
    min_pairs: pairs every image must keep for a cuboid or a crop to be accepted.
    """

    crop: tuple[int, int] | None = (224, 416)
    train: bool = True
    cuboid: float = 0.2
    min_pairs: int = 1024


@dataclass(frozen=True)
class Augmentation:
    """One draw: what happens to one frame."""

    angle: float = 0.0  # radians about z
    flip_x: bool = False
    flip_y: bool = False
    cuboid: tuple[np.ndarray, np.ndarray] | None = (
        None  # lower and upper corner `[3]`, in the rotated and flipped cloud
    )
    crop: tuple[int, int] | None = None  # rows, columns after resizing
    boxes: tuple[Box, ...] = field(default=())  # of each image, in its own pixels
    mirrored: tuple[bool, ...] = field(default=())  # images flipped left to right


def draw(rng: np.random.Generator, frame: Frame, settings: AugmentSettings) -> Augmentation:
    """Parameters for `frame`; without `settings.train` those of a plain resize."""
    sizes = [view.image.shape[:2] for view in frame.cameras]
    whole = tuple((0, 0, *size) for size in sizes)
    if not settings.train:
        return Augmentation(crop=settings.crop, boxes=whole, mirrored=(False,) * len(sizes))
    drawn = Augmentation(
        angle=rng.uniform(0, 2 * math.pi),
        flip_x=bool(rng.random() < 0.5),
        flip_y=bool(rng.random() < 0.5),
        crop=settings.crop,
    )
    moved, pairs = _moved(frame.points, drawn), frame.pairs
    cuboid = _draw_cuboid(rng, moved, pairs, len(sizes), settings) if settings.cuboid > 0 and len(moved) else None
    if cuboid is not None:
        pairs = pairs.select(~_inside(moved, cuboid)[pairs.point])
    boxes = [
        _draw_box(rng, size, pairs.select(pairs.camera == i), settings) if settings.crop else whole[i]
        for i, size in enumerate(sizes)
    ]
    return replace(drawn, cuboid=cuboid, boxes=tuple(boxes), mirrored=tuple(bool(rng.random() < 0.5) for _ in sizes))


def apply(frame: Frame, drawn: Augmentation) -> Frame:
    """A new frame: cloud moved and cut, images resized to float32 0..1, pairs at their new rows, rows and columns."""
    points = _moved(frame.points, drawn)
    labels, pairs = frame.labels, frame.pairs
    if drawn.cuboid is not None:
        kept = ~_inside(points, drawn.cuboid)
        new_row = np.cumsum(kept) - 1
        points, labels = points[kept], None if labels is None else labels[kept]
        pairs = pairs.select(kept[pairs.point])
        pairs = Pairs(new_row[pairs.point], pairs.camera, pairs.row, pairs.column)
    if drawn.crop is None or not frame.cameras:
        return replace(frame, points=points, labels=labels, pairs=pairs)
    views, parts = [], []
    for i, (view, box, mirrored) in enumerate(zip(frame.cameras, drawn.boxes, drawn.mirrored, strict=True)):
        views.append(_cropped_view(view, box, drawn.crop, mirrored))
        parts.append(_cropped_pairs(pairs.select(pairs.camera == i), box, drawn.crop, mirrored))
    return replace(frame, points=points, labels=labels, cameras=views, pairs=Pairs.concatenate(parts))


def _moved(points: np.ndarray, drawn: Augmentation) -> np.ndarray:
    c, s = math.cos(drawn.angle), math.sin(drawn.angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    moved = points.copy()
    moved[:, :3] = points[:, :3] @ rotation.T
    if drawn.flip_x:
        moved[:, 0] *= -1
    if drawn.flip_y:
        moved[:, 1] *= -1
    return moved


def _inside(points: np.ndarray, cuboid: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return ((points[:, :3] > cuboid[0]) & (points[:, :3] < cuboid[1])).all(1)


def _draw_cuboid(rng, points, pairs, cameras, settings) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre: a random point; side: one random share of the range of each axis; refused (published code) for good if
    any image would keep too few pairs."""
    half = np.ptp(points[:, :3], axis=0) * rng.uniform(0, settings.cuboid) / 2
    centre = points[rng.integers(len(points)), :3]
    cuboid = centre - half, centre + half
    left = np.bincount(pairs.camera[~_inside(points, cuboid)[pairs.point]], minlength=cameras)
    return cuboid if cameras == 0 or left.min() >= settings.min_pairs else None


def _draw_box(rng, size: tuple[int, int], pairs: Pairs, settings: AugmentSettings) -> Box:
    rows, columns = size
    for _ in range(DRAWS):
        area = rows * columns * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < w <= columns and 0 < h <= rows):
            continue
        box = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1)), h, w
        kept = len(_cropped_pairs(pairs, box, settings.crop, False))
        if kept > settings.min_pairs or kept > ENOUGH_SHARE * len(pairs):
            return box
    return 0, 0, rows, columns


def _cropped_pairs(pairs: Pairs, box: Box, crop: tuple[int, int], mirrored: bool) -> Pairs:
    """Pairs of one image after cutting `box`, resizing it to `crop` and flipping; those outside are dropped."""
    top, left, rows, columns = box
    row = np.round((pairs.row - top) * (crop[0] / rows)).astype(np.int64)
    column = np.round((pairs.column - left) * (crop[1] / columns)).astype(np.int64)
    inside = (row >= 0) & (row < crop[0]) & (column >= 0) & (column < crop[1])
    if mirrored:
        column = crop[1] - 1 - column
    return Pairs(pairs.point[inside], pairs.camera[inside], row[inside], column[inside])


def _cropped_view(view: CameraView, box: Box, crop: tuple[int, int], mirrored: bool) -> CameraView:
    """Bilinear image without antialiasing (published code; today's defaults differ), nearest superpixels."""
    top, left, rows, columns = box
    cut = slice(top, top + rows), slice(left, left + columns)
    image = torch.from_numpy(view.image[cut].transpose(2, 0, 1).copy())[None].float() / 255
    image = F.interpolate(image, size=crop, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    superpixels = view.superpixels
    if superpixels is not None:
        # nearest as torch has it: source = floor(target * scale), in float32
        r = np.floor(np.arange(crop[0], dtype=np.float32) * np.float32(rows / crop[0])).astype(int).clip(max=rows - 1)
        c = np.floor(np.arange(crop[1], dtype=np.float32) * np.float32(columns / crop[1])).astype(int)
        superpixels = superpixels[cut][r[:, None], c.clip(max=columns - 1)]
    if mirrored:
        image = image[:, ::-1]
        superpixels = None if superpixels is None else superpixels[:, ::-1]
    return replace(view, image=image, superpixels=superpixels)
