"""Pictures of one frame: points and superpixels in the image, and what a lidar network finds similar to one point."""

from functools import partial
from pathlib import Path

from data.datasets import open_reader
from data.files import InputError, names_inside
from data.frame import Needs
from data.samples import Notes, without_unmeasured
from slidr import inference, pictures
from slidr.config import Show
from slidr.networks.model_file import newest_model
from slidr.report import counted
from slidr.similarity import Space, choose_queries, draw_camera, draw_similarity


def run(settings: Show) -> Path:
    """Draw the frame that the settings name; the folder of its pictures."""
    pictures.set_output(settings.format, settings.dpi)
    path = Path(settings.weights) if settings.weights else newest_model(settings.output, "pretrain")
    if path is None and (settings.pixel or settings.point or settings.classes):
        raise InputError("similarity needs a network; run `python run.py pretrain` first, or pass --weights.")
    space = open_space(path, settings) if path else None
    reader = open_reader(settings.dataset, settings.root, settings.split, settings.read_options())
    if settings.frame >= len(reader):
        raise InputError(
            f"`frame` cannot be {settings.frame}: the split `{settings.split}` has {counted(len(reader), 'frame')}."
        )
    maps = settings.superpixels_folder / reader.dataset.name, settings.superpixel_settings()
    frame = reader.read(settings.frame, Needs(cameras="all", labels=bool(settings.classes)))
    frame = without_unmeasured(frame, Notes())
    there = range(len(frame.cameras))
    if settings.camera != "all" and settings.camera not in there:
        raise InputError(
            f"`camera` cannot be {settings.camera}: the frames of {reader.dataset.name} have {len(there)} cameras."
        )

    if not names_inside(frame.id):
        raise InputError(f"the frame {frame.id!r} cannot name a folder; rename it in the data set.")
    folder, names = settings.output / "show" / settings.dataset / frame.id, []
    for camera in there if settings.camera == "all" else [settings.camera]:
        name = frame.cameras[camera].name
        draw_camera(frame, camera, maps, folder / f"camera_{name}.png")
        names.append(f"camera_{name}.png")
        wanted = (settings.pixel, settings.point, settings.classes or ())
        queries = choose_queries(frame, camera, reader.dataset.classes, *wanted)
        if space and draw_similarity(frame, camera, reader, space, folder / f"similarity_{name}.png", queries):
            names.append(f"similarity_{name}.png")
    print(f"show: {', '.join(str(folder / name) for name in names)}" + (f" (features of {path})" if path else ""))
    return folder


def open_space(path: Path, settings: Show) -> Space:
    """The feature space of a model.pt, with pixels if its image network can be had."""
    network = inference.load(path)
    teacher, sentence = inference.open_image_network(network.model, settings)
    print(sentence)
    pixels = partial(inference.image_features, network.model, teacher) if teacher else None
    return Space(network.features, pixels, settings.crop)
