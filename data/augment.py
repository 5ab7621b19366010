"""Augmentations of cloud and images that keep boxes and the point-pixel pairs right (supplement, section B).

Parameters are drawn in one place and applied in another, so that a run is reproducible by its seed and tests can choose
them. The number of attempts is bounded; where all fail, the image stays whole, or no cuboid is dropped.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from data.boxes import count_points, move_boxes
from data.frame import CameraView, Frame, Pairs

DRAWS = 10  # attempts at a crop or a cuboid
ENOUGH_SHARE = 0.75  # of an image's pairs: a crop that keeps more is accepted whatever their number

Box = tuple[int, int, int, int]  # top row, left column, rows, columns


@dataclass(frozen=True)
class AugmentSettings:
    """What to draw.

    crop: rows and columns of every image after resizing; None = images stay as they are.
    train: False = the whole image resized, nothing else.
    cuboid: largest side of the dropped cuboid as a share of the cloud's range; 0 = none.
    paper_cuboid: which cuboid is refused. False (published code): one that leaves any image fewer than min_pairs
        pairs; then none is dropped. True (supplement; its largest side is 0.1): one that leaves all images together
        fewer than min_pairs; then another is drawn.
    min_pairs: pairs to keep for a cuboid or a crop to be accepted.
    area, aspect: smallest and largest share of the image that a crop covers before resizing, and its width / height.
    """

    crop: tuple[int, int] | None = (224, 416)
    train: bool = True
    cuboid: float = 0.2
    paper_cuboid: bool = False
    min_pairs: int = 1024
    area: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (14 / 9, 17 / 9)


@dataclass(frozen=True)
class Augmentation:
    """One draw: what happens to one frame, in the order of the fields."""

    angle: float = 0.0  # radians about z
    flip_x: bool = False  # x changes its sign
    flip_y: bool = False
    cuboid: tuple[np.ndarray, np.ndarray] | None = None  # lower, upper corner `[3]` in the rotated and flipped cloud
    crop: tuple[int, int] | None = None  # rows and columns of the images; None = images as they are
    boxes: tuple[Box, ...] = ()  # what is cut out of each image, in its own pixels
    mirrored: tuple[bool, ...] = ()  # of each image: flipped left to right


def draw(rng: np.random.Generator, frame: Frame, settings: AugmentSettings) -> Augmentation:
    """Parameters for `frame`; without `settings.train` those of a plain resize."""
    sizes = [view.size for view in frame.cameras]
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
    if settings.crop is None:
        return replace(drawn, cuboid=cuboid)
    if cuboid is not None:
        pairs = pairs.select(~_inside(moved, cuboid)[pairs.point])
    boxes = tuple(_draw_box(rng, size, pairs.select(pairs.camera == i), settings) for i, size in enumerate(sizes))
    return replace(drawn, cuboid=cuboid, boxes=boxes, mirrored=tuple(bool(rng.random() < 0.5) for _ in sizes))


def apply(frame: Frame, drawn: Augmentation) -> Frame:
    """A new frame: the cloud moved and cut, the images cut, resized (float32 in 0..1) and flipped.

    Its pairs are those of the points and pixels that are left, at their new rows and pixels; its pose, if there is one,
    still takes its points to the same places in the world, its heading and boxes move along. Of a box whose points are
    dropped the count alone changes. Without a crop size the images stay as they are.
    """
    boxes, ignore = (b if b is None else move_boxes(b, _motion(drawn)) for b in (frame.boxes, frame.ignore))
    moved, pose = replace(frame, points=_moved(frame.points, drawn), boxes=boxes, ignore=ignore), frame.pose
    if drawn.cuboid is not None:
        moved = moved.select(~_inside(moved.points, drawn.cuboid))
        if boxes is not None:
            moved.boxes = count_points(moved.points, boxes)
    if pose is not None:
        pose = pose.copy()
        pose[:3, :3] = frame.pose[:3, :3] @ _motion(drawn).T
    cameras, pairs = moved.cameras, moved.pairs
    if drawn.crop is not None:
        cuts = list(zip(cameras, drawn.boxes, drawn.mirrored, strict=True))
        pairs = Pairs.concatenate(
            [
                _cropped_pairs(pairs.select(pairs.camera == i), view.size, box, drawn.crop, mirrored)
                for i, (view, box, mirrored) in enumerate(cuts)
            ]
        )
        cameras = [_cropped_view(view, box, drawn.crop, mirrored) for view, box, mirrored in cuts]
    forward = tuple((_motion(drawn)[:2, :2] @ frame.forward).tolist())
    return replace(moved, cameras=cameras, pairs=pairs, pose=pose, forward=forward)


def kept(frame: Frame, drawn: Augmentation) -> np.ndarray:
    """Which points of `frame` are still there after `apply`, in the same order: a mask `[N]`."""
    if drawn.cuboid is None:
        return np.ones(len(frame.points), bool)
    return ~_inside(_moved(frame.points, drawn), drawn.cuboid)


def _motion(drawn: Augmentation) -> np.ndarray:
    """Rotation, then flips, as one orthogonal matrix `[3, 3]`."""
    c, s = math.cos(drawn.angle), math.sin(drawn.angle)
    signs = np.array([-1 if drawn.flip_x else 1, -1 if drawn.flip_y else 1, 1])
    return signs[:, None] * np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _moved(points: np.ndarray, drawn: Augmentation) -> np.ndarray:
    moved = points.copy()
    moved[:, :3] = points[:, :3] @ _motion(drawn).T.astype(np.float32)
    return moved


def _inside(points: np.ndarray, cuboid: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    lower, upper = cuboid
    return np.logical_and.reduce([(lower[i] < points[:, i]) & (points[:, i] < upper[i]) for i in range(3)])


def _draw_cuboid(
    rng: np.random.Generator, points: np.ndarray, pairs: Pairs, cameras: int, settings: AugmentSettings
) -> tuple[np.ndarray, np.ndarray] | None:
    """Two corners. The centre is a random point, the sides are one random share of the cloud's range on each axis.

    None if it would drop too many pairs.
    """
    reach = np.array([np.ptp(points[:, i]) for i in range(3)])  # numpy reduces many rows of three slowly
    for _ in range(DRAWS if settings.paper_cuboid else 1):
        half = reach * rng.uniform(0, settings.cuboid) / 2
        centre = points[rng.integers(len(points)), :3]
        cuboid = centre - half, centre + half
        left = np.bincount(pairs.camera[~_inside(points, cuboid)[pairs.point]], minlength=cameras)
        if cameras == 0 or (left.sum() if settings.paper_cuboid else left.min()) >= settings.min_pairs:
            return cuboid
    return None


def _draw_box(rng: np.random.Generator, size: tuple[int, int], pairs: Pairs, settings: AugmentSettings) -> Box:
    """A box of random area, aspect and place that keeps enough of an image's `pairs`, or else the whole image."""
    rows, columns = size
    for _ in range(DRAWS):
        area = rows * columns * rng.uniform(*settings.area)
        aspect = math.exp(rng.uniform(*map(math.log, settings.aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < w <= columns and 0 < h <= rows):
            continue
        box = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1)), h, w
        kept = len(_cropped_pairs(pairs, size, box, settings.crop, False))
        if kept > settings.min_pairs or kept > ENOUGH_SHARE * len(pairs):
            return box
    return 0, 0, rows, columns


def _cropped_pairs(pairs: Pairs, size: tuple[int, int], box: Box, crop: tuple[int, int], mirrored: bool) -> Pairs:
    """Pairs of one image of `size` after cutting `box`, resizing it to `crop` and flipping; those outside are dropped.

    Pairs may round to the pixel after the last. In the whole image they go to the last one, a smaller box drops them
    (both as in the published code).
    """
    top, left, rows, columns = box
    row = np.round((pairs.row - top) * (crop[0] / rows)).astype(np.int64)
    column = np.round((pairs.column - left) * (crop[1] / columns)).astype(np.int64)
    if (rows, columns) == tuple(size):
        row, column = np.minimum(row, crop[0] - 1), np.minimum(column, crop[1] - 1)
    inside = (row >= 0) & (row < crop[0]) & (column >= 0) & (column < crop[1])
    if mirrored:
        column = crop[1] - 1 - column
    return replace(pairs, row=row, column=column).select(inside)


def _cropped_view(view: CameraView, box: Box, crop: tuple[int, int], mirrored: bool) -> CameraView:
    """Bilinear image without antialiasing (as published; today's defaults differ by up to 0.3), nearest superpixels."""
    image, superpixels = _bilinear(view.image, view.size, box, crop), view.superpixels
    if superpixels is not None:
        rows, columns = (
            (first + _nearest(length, target)) * stored // whole
            for first, length, target, stored, whole in zip(
                box[:2], box[2:], crop, superpixels.shape, view.size, strict=True
            )
        )
        superpixels = np.take(superpixels[rows], columns, axis=1)  # four times as fast as both at once
    if mirrored:
        image = image[:, ::-1]
        superpixels = None if superpixels is None else superpixels[:, ::-1]
    return replace(view, image=image, superpixels=superpixels, size=crop)


def _bilinear(image: np.ndarray, size: tuple[int, int], box: Box, crop: tuple[int, int]) -> np.ndarray:
    """`box` of an image of `size` resized to `crop` `[*crop, 3]` float32 in 0..1, as torch's `interpolate` has it.

    Only the rows and columns that count are converted, few of a large image. An `image` stored smaller than its `size`
    is sampled at the same places.
    """
    (above, below, down), (left, right, along) = (
        _neighbours(first * stored / whole, length * stored / whole, target)
        for first, length, target, stored, whole in zip(box[:2], box[2:], crop, image.shape, size, strict=False)
    )
    first, end = left[0], right[-1] + 1
    top, bottom = (torch.from_numpy(image[rows, first:end]).float() for rows in (above, below))
    lines = torch.lerp(top, bottom, torch.from_numpy(down)[:, None, None])
    # two pixels of each line, channels in one row: long inner loops
    west, east = (lines.index_select(1, torch.from_numpy(at - first)).flatten(1) for at in (left, right))
    return torch.lerp(west, east, torch.from_numpy(along.repeat(3))).div_(255).view(*crop, 3).numpy()


def _neighbours(first: float, length: float, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels of each of `target` pixels, and the second one's weight `[target]` float32.

    The source begins at pixel `first` and is `length` pixels long. Places are rounded to float32 as torch does.
    """
    places = np.float64(np.float32(length / target)) * (np.arange(target) + 0.5) - 0.5
    places = np.maximum(places.astype(np.float32), 0) + np.float64(first)
    low = places.astype(np.int64)
    high = np.minimum(low + 1, math.ceil(first + length) - 1)
    return low, high, (places - low).astype(np.float32)


def _nearest(source: int, target: int) -> np.ndarray:
    """Source pixel of each of `target` pixels `[target]`; floor in float32, as torch's "nearest" has it."""
    return np.floor(np.arange(target, dtype=np.float32) * np.float32(source / target)).astype(np.int64)
