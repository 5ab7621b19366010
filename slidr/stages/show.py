"""Pictures of one frame: points and superpixels in the image, and what a lidar network finds similar to one point."""

from pathlib import Path

import numpy as np
import torch

from data.datasets import open_reader
from data.disk import InputError
from data.frame import Frame, Reader, collate
from data.superpixels import load_or_compute
from slidr import pictures
from slidr.config import Show, WithSuperpixels
from slidr.student import Student, StudentSpec, load_weights, newest_checkpoint, read_checkpoint


def run(settings: Show) -> Path:
    """Draw the frame that the settings name; the folder of the pictures."""
    reader = open_reader(settings.dataset, settings.root, settings.split)
    if settings.frame >= len(reader):
        raise InputError(f"`frame` cannot be {settings.frame}: the split `{settings.split}` has {len(reader)} frames.")
    path = Path(settings.weights) if settings.weights else newest_checkpoint(settings.output, "pretrain")
    student = None
    if path:
        content = read_checkpoint(path)
        if content["stage"] != "pretrain":
            raise InputError(f"{path} comes from {content['stage']}; similarity needs a pretrained model.pt.")
        out_channels = content["weights"]["final.weight"].shape[-1]
        student = Student(StudentSpec(**content["spec"]), out_channels, bn_momentum=0.05, normalize=True)
        load_weights(student, content, path, with_head=True)
    folder = settings.output / "show" / settings.dataset
    frame = read_frame(settings, reader, settings.frame, settings.camera)
    pictures.camera_overlay(frame, settings.camera, folder / "camera.png")
    names = ["camera.png"]
    if student and draw_similarity(frame, settings.camera, reader, student, folder / "similarity.png"):
        names.append("similarity.png")
    print(f"show: {', '.join(str(folder / name) for name in names)}" + (f" (features of {path})" if path else ""))
    return folder


def read_frame(settings: WithSuperpixels, reader: Reader, index: int, camera: int) -> Frame:
    """Frame `index` with the superpixels of camera `camera`. Raises InputError if there is no such camera."""
    frame = reader.read(index, labels=False)
    if camera >= len(frame.cameras):
        raise InputError(f"`camera` cannot be {camera}: the frames of {reader.name} have {len(frame.cameras)} cameras.")
    view = frame.cameras[camera]
    view.superpixels = load_or_compute(
        view, settings.superpixels_folder / settings.dataset, settings.superpixel_settings()
    )
    return frame


@torch.no_grad()
def draw_similarity(frame: Frame, camera: int, reader: Reader, student: Student, path: Path) -> bool:
    """Draw the cosine similarity of every point's feature to that of a query point; False if `camera` sees no point.

    The query is the paired point nearest the image's lower middle, where the road or a car usually is. Leaves the
    student in eval mode.
    """
    seen = frame.pairs.select(frame.pairs.camera == camera)
    if len(seen) == 0:
        return False
    device = next(student.parameters()).device
    features, voxels = student.eval()(collate([frame], reader.intensity_offset).to(device))
    features = torch.nn.functional.normalize(features, dim=1)[voxels.inverse].cpu().numpy()
    rows, columns = frame.cameras[camera].image.shape[:2]
    query = seen.point[np.argmin((seen.row - 0.7 * rows) ** 2 + (seen.column - 0.5 * columns) ** 2)]
    pictures.similarity(frame, camera, query, features @ features[query], path)
    return True
