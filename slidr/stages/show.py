"""Pictures of one frame: points and superpixels in the image, and what a lidar network finds similar to one point."""

from pathlib import Path

from data.datasets import open_reader
from data.files import InputError
from slidr import inference, pictures
from slidr.config import Show
from slidr.networks.model_file import newest_model
from slidr.similarity import draw_similarity, read_view


def run(settings: Show) -> Path:
    """Draw the frame that the settings name; the folder of the pictures."""
    path = Path(settings.weights) if settings.weights else newest_model(settings.output, "pretrain")
    network = inference.load(path) if path else None
    reader = open_reader(settings.dataset, settings.root, settings.split, settings.read_options())
    if settings.frame >= len(reader):
        raise InputError(f"`frame` cannot be {settings.frame}: the split `{settings.split}` has {len(reader)} frames.")
    maps = settings.superpixels_folder / reader.dataset.name, settings.superpixel_settings()
    frame = read_view(reader, settings.frame, settings.camera, maps)

    folder = settings.output / "show" / settings.dataset
    names = ["camera.png"]
    pictures.camera_overlay(frame, settings.camera, folder / names[0])
    if network and draw_similarity(frame, settings.camera, reader, network.features, folder / "similarity.png"):
        names.append("similarity.png")
    print(f"show: {', '.join(str(folder / name) for name in names)}" + (f" (features of {path})" if path else ""))
    return folder
