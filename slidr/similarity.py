"""What a network finds similar to one point of a frame, among the points and the pixels (supplement, Fig. 4 and 5)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from data.augment import Augmentation, apply
from data.datasets.dataset import Reader
from data.files import InputError
from data.frame import Batch, Frame, Needs, Pairs, collate
from data.samples import Notes, without_unmeasured
from data.superpixels import SuperpixelSettings, load_or_compute
from slidr import pictures
from slidr.networks.student import Student

Maps = tuple[Path, SuperpixelSettings]  # folder and settings of superpixel maps


@dataclass(frozen=True)
class Space:
    """The feature space that points and, where images were used, pixels share.

    points: a batch -> features `[N, C]` of its points, L2-normalised.
    pixels: images `[1, 3, h, w]` in 0..1 -> features `[1, C, h', w']`; None = there is no image head.
    crop: rows and columns of the images.
    """

    points: Callable[[Batch], torch.Tensor]
    pixels: Callable[[torch.Tensor], torch.Tensor] | None = None
    crop: tuple[int, int] | None = None


def draw_camera(frame: Frame, camera: int, maps: Maps | None, path: Path) -> None:
    """Draw camera `camera` with its points and, if there are maps, the borders of its superpixels."""
    if maps:
        frame.cameras[camera].superpixels = load_or_compute(frame.cameras[camera], *maps)
    pictures.camera_overlay(frame, camera, path)


@torch.no_grad()
def student_features(student: Student, batch: Batch) -> torch.Tensor:
    """L2-normalised outputs `[N, C]` of every point of a batch; leaves the student in eval mode."""
    output, voxels = student.eval()(batch.to(next(student.parameters()).device))
    return F.normalize(output, dim=1)[voxels.inverse]


def nearest_pixel(frame: Frame, camera: int, row: float, column: float) -> int:
    """The point nearest to a pixel of those that `camera` sees, of which there must be one."""
    seen = frame.pairs.select(frame.pairs.camera == camera)
    return int(seen.point[np.argmin((seen.row - row) ** 2 + (seen.column - column) ** 2)])


@torch.no_grad()
def draw_similarity(
    frame: Frame, camera: int, reader: Reader, space: Space, path: Path, queries: dict[str, int] | None = None
) -> bool:
    """Draw how similar points and, if the space has them, pixels of `camera` are to query points, by cosine.

    Args:
        queries: name -> row of a point; none = the point nearest the image's lower middle, where the road or a car
            usually is.
        path: PNG to write.

    False if the camera sees no point.
    """
    if not (frame.pairs.camera == camera).any():
        return False
    rows, columns = frame.cameras[camera].size
    queries = queries or {"the point in the lower middle": nearest_pixel(frame, camera, 0.7 * rows, 0.5 * columns)}
    points = space.points(collate([frame], reader.intensity_offset, reader.intensity_scale)).float()
    pixels = None
    if space.pixels:
        view = replace(frame.cameras[camera], superpixels=None)
        whole = Augmentation(crop=space.crop, boxes=((0, 0, *view.size),), mirrored=(False,))
        small = collate([apply(replace(frame, cameras=[view], pairs=Pairs.empty()), whole)])
        features = space.pixels(small.images.to(points.device)).float()
        # as where features are pooled: upsampled to the image, then normalised
        pixels = F.normalize(F.interpolate(features, space.crop, mode="bilinear", align_corners=True), dim=1)[0]
    found = []
    for name, query in queries.items():
        in_image = None if pixels is None else torch.einsum("c,chw->hw", points[query], pixels).cpu().numpy()
        found.append(pictures.Similarity(query, name, (points @ points[query]).cpu().numpy(), in_image))
    pictures.similarity(frame, camera, found, path)
    return True


def draw_camera_and_similarity(
    reader: Reader, space: Space, folder: Path, suffix: str = "", maps: Maps | None = None
) -> list[str]:
    """Pictures of the split's first frame: camera.png, unless there is a suffix, and similarity<suffix>.png."""
    frame, names = without_unmeasured(reader.read(0, Needs(cameras="all")), Notes()), []
    if not suffix:
        draw_camera(frame, 0, maps, folder / "camera.png")
        names.append("camera.png")
    if draw_similarity(frame, 0, reader, space, folder / f"similarity{suffix}.png"):
        names.append(f"similarity{suffix}.png")
    return names


def choose_queries(
    frame: Frame,
    camera: int,
    names: tuple[str, ...],
    pixel: tuple[int, int] | None,
    point: tuple[float, float, float] | None,
    classes: tuple[str, ...],
) -> dict[str, int]:
    """Title -> row of the point asked for by each of a pixel, a place and classes; none if nothing is asked for.

    Args:
        names: the data set's classes by train id.
        pixel: row and column: the point that the camera sees nearest to it.
        point: x, y, z in metres in the lidar frame: the point nearest to it.
        classes: for each the labelled point nearest the vehicle that the camera sees.

    Raises InputError for a pixel outside the image, a class that does not exist, or no such point.
    """
    view, queries = frame.cameras[camera], {}
    seen = frame.pairs.point[frame.pairs.camera == camera]
    if pixel and len(seen):
        if not all(p < size for p, size in zip(pixel, view.size, strict=True)):
            raise InputError(f"`pixel` cannot be {pixel[0]},{pixel[1]}: {view.name} has {view.size[0]} rows and "
                             f"{view.size[1]} columns.")  # fmt: skip
        queries[f"the point nearest row {pixel[0]}, column {pixel[1]}"] = nearest_pixel(frame, camera, *pixel)
    if point and len(frame.points):
        nearest = int(np.linalg.norm(frame.points[:, :3] - np.float32(point), axis=1).argmin())
        queries["the point at " + ", ".join(f"{v:.1f}" for v in frame.points[nearest, :3]) + " m"] = nearest
    for name in classes:
        if name not in names[1:]:
            raise InputError(f"there is no class `{name}`; the classes are {', '.join(names[1:])}.")
        if frame.labels is None:
            raise InputError("`classes` needs a frame with labels; choose another --split, or --pixel or --point.")
        found = seen[frame.labels[seen] == names.index(name)]
        if len(found) == 0:
            raise InputError(f"{view.name} of the frame {frame.id} sees no labelled point of the class {name}; choose "
                             "another --frame, --camera or class.")  # fmt: skip
        queries[f"a point of the class {name}"] = int(found[np.linalg.norm(frame.points[found, :3], axis=1).argmin()])
    return queries
