"""Pictures of one frame: points and superpixels in the image, and what a lidar network finds similar to one point."""

from pathlib import Path

import numpy as np
import torch

from data.augment import AugmentSettings  # noqa: F401
from data.datasets import open_reader
from data.disk import InputError
from data.frame import Reader, collate
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
    names = draw_frame(settings, reader, settings.frame, settings.camera, folder, student)
    print(f"show: {', '.join(str(folder / name) for name in names)}" + (f" (features of {path})" if path else ""))
    return folder


def draw_frame(
    settings: WithSuperpixels, reader: Reader, index: int, camera: int, folder: Path, student: Student | None
) -> list[str]:
    """Draw camera `camera` of frame `index`; file names of the pictures in `folder`.

    With a student also the cosine similarity of every point's feature to that of a query point: the paired point
    nearest the image's lower middle, where the road or a car usually is.
    """
    frame = reader.read(index, labels=False)
    if camera >= len(frame.cameras):
        raise InputError(f"`camera` cannot be {camera}: the frames of {reader.name} have {len(frame.cameras)} cameras.")
    view = frame.cameras[camera]
    view.superpixels = load_or_compute(
        view, settings.superpixels_folder / settings.dataset, settings.superpixel_settings()
    )
    pictures.camera_overlay(frame, camera, folder / "camera.png")
    seen = frame.pairs.select(frame.pairs.camera == camera)
    if student is None or len(seen) == 0:
        return ["camera.png"]
    batch = collate([frame], reader.intensity_offset)
    student.eval()
    with torch.no_grad():
        features, voxels = student(batch)
    features = torch.nn.functional.normalize(features, dim=1)[voxels.inverse].numpy()
    rows, columns = view.image.shape[:2]
    query = seen.point[np.argmin((seen.row - 0.7 * rows) ** 2 + (seen.column - 0.5 * columns) ** 2)]
    pictures.similarity(frame, camera, query, features @ features[query], folder / "similarity.png")
    return ["camera.png", "similarity.png"]
