"""What a lidar network finds similar to one point of a frame, as a picture."""

from pathlib import Path

import numpy as np
import torch

from data.datasets.dataset import Reader
from data.files import InputError
from data.frame import Batch, Frame, Needs, collate
from data.superpixels import SuperpixelSettings, load_or_compute
from slidr import pictures
from slidr.networks.student import Student

Maps = tuple[Path, SuperpixelSettings]  # folder and settings of superpixel maps


def read_view(reader: Reader, index: int, camera: int, maps: Maps | None = None) -> Frame:
    """Frame `index` with all its images, and the superpixels of camera `camera` if there are maps.

    Raises InputError if there is no such camera.
    """
    frame = reader.read(index, Needs(cameras="all"))
    if camera >= len(frame.cameras):
        raise InputError(
            f"`camera` cannot be {camera}: the frames of {reader.dataset.name} have {len(frame.cameras)} cameras."
        )
    if maps:
        frame.cameras[camera].superpixels = load_or_compute(frame.cameras[camera], *maps)
    return frame


@torch.no_grad()
def student_features(student: Student, batch: Batch) -> torch.Tensor:
    """L2-normalised outputs `[N, C]` of every point of a batch; leaves the student in eval mode."""
    output, voxels = student.eval()(batch.to(next(student.parameters()).device))
    return torch.nn.functional.normalize(output, dim=1)[voxels.inverse]


def draw_similarity(frame: Frame, camera: int, reader: Reader, features_of, path: Path) -> bool:
    """Draw the cosine similarity of every point's feature to that of a query point; False if `camera` sees no point.

    The query is the paired point nearest the image's lower middle, where the road or a car usually is.

    Args:
        features_of: a batch -> L2-normalised features `[N, C]` of its points.
    """
    seen = frame.pairs.select(frame.pairs.camera == camera)
    if len(seen) == 0:
        return False
    features = features_of(collate([frame], reader.intensity_offset, reader.intensity_scale)).cpu().numpy()
    rows, columns = frame.cameras[camera].size
    query = seen.point[np.argmin((seen.row - 0.7 * rows) ** 2 + (seen.column - 0.5 * columns) ** 2)]
    pictures.similarity(frame, camera, query, features @ features[query], path)
    return True


def draw_camera_and_similarity(
    reader: Reader, student: Student, folder: Path, suffix: str = "", maps: Maps | None = None
) -> list[str]:
    """Pictures of the split's first frame: camera.png, unless there is a suffix, and similarity<suffix>.png."""
    frame, names = read_view(reader, 0, 0, maps), []
    if not suffix:
        pictures.camera_overlay(frame, 0, folder / "camera.png")
        names.append("camera.png")
    if draw_similarity(frame, 0, reader, lambda b: student_features(student, b), folder / f"similarity{suffix}.png"):
        names.append(f"similarity{suffix}.png")
    return names
