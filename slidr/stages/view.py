"""A page to turn frames around in, and to ask what a lidar network finds similar to a point."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.nn import functional as F

from data import augment
from data.augment import AugmentSettings
from data.datasets import DATASETS, find_dataset, open_reader
from data.datasets.dataset import DataSet, Reader
from data.files import InputError
from data.frame import Needs
from data.progress import Progress
from data.samples.single import Single
from slidr import inference, viewer
from slidr.config import View
from slidr.tasks.start import pretrained_model
from slidr.training import prepare


def run(settings: View) -> Path:
    """Write the page that the settings name; its path."""
    device = prepare(settings)
    path = pretrained_model(settings.weights, settings.output)
    network = inference.load(path, device)
    reader = open_reader(settings.dataset, settings.root, settings.split, settings.read_options())
    indices, what = _choose(reader, settings)
    classes = reader.dataset.classes, reader.dataset.colours
    predicted = (network.classes, _colours(network.classes, reader.dataset)) if network.classes else None
    box_colours = _box_colours(network.detector.classes, reader.dataset) if network.detector else None
    teacher, pixels_are = inference.open_image_network(network.model, settings)

    maps = settings.superpixels_folder / reader.dataset.name, settings.superpixel_settings()
    sample = Single(reader, _needs(reader, indices[0]), AugmentSettings(crop=None, train=False), maps)
    resize, rng = AugmentSettings(crop=settings.crop, train=False), np.random.default_rng(settings.seed)
    shown = []
    for index in Progress(indices, desc="frames", leave=False, delay=5):
        frame, _ = sample.draw(index, rng)
        batch = sample.collate([augment.apply(frame, augment.draw(rng, frame, resize))])  # as in validation
        features = network.features(batch).cpu().numpy().astype(np.float16)
        prediction = network.classify(batch).cpu().numpy() if network.classes else None
        boxes = {} if frame.boxes is None else {"true": (frame.boxes, reader.dataset.box_colours)}
        if network.detector:
            boxes["found"] = network.detector.detect(batch.to(device))[0].boxes, box_colours
        pixels = None
        if teacher and frame.cameras:
            found = inference.image_features(network.model, teacher, batch.images.to(device))
            pixels = F.normalize(found, dim=1).movedim(1, -1).cpu().numpy()
        shown.append(viewer.Shown(frame, reader.scenes[index], features, prediction, pixels, boxes))

    model = network.model
    origin = f", pretrained by {model.pretraining.method} on {model.pretraining.dataset}" if model.pretraining else ""
    space = "of its pretraining's feature space" if model.point_head else "of its backbone"
    about = [
        f"{settings.dataset}, {settings.split}: {what}; network {path}",
        f"{model.spec.architecture} x {model.spec.width:g} of {model.stage}{origin}; features {space}.",
        pixels_are,
    ]
    name = re.sub(r"[^\w.-]+", "_", settings.scene or f"{settings.split}_{settings.frame}")
    page = settings.output / "view" / re.sub(r"[^\w.-]+", "_", settings.dataset) / f"{name}.html"
    says = viewer.write_page(page, shown, about, classes, predicted, settings.seed)
    print(f"view: {page}\n  " + "\n  ".join([*about, says]))
    return page


def _choose(reader: Reader, settings: View) -> tuple[list[int], str]:
    """Indices of the frames to show, and what they are; InputError if there is no such scene or frame."""
    if settings.scene is None:
        if settings.frame >= len(reader):
            raise InputError(f"`frame` cannot be {settings.frame}: `{settings.split}` has {len(reader)} frames.")
        return [settings.frame], f"frame {settings.frame} of {len(reader)}"
    of_scene = [index for index, scene in enumerate(reader.scenes) if scene == settings.scene]
    if not of_scene:
        there = list(dict.fromkeys(reader.scenes))
        names = ", ".join(there[:8]) + (" ..." if len(there) > 8 else "")
        raise InputError(f"the split `{settings.split}` has no scene {settings.scene}; choose one of {names}.")
    step = -(-len(of_scene) // settings.frames)
    which = f"every {step}th of its {len(of_scene)} frames" if step > 1 else f"{len(of_scene)} frames"
    return of_scene[::step], f"scene {settings.scene}, {which}"


def _needs(reader: Reader, index: int) -> Needs:
    """Labels, all cameras with superpixels, boxes; a line says if cameras or boxes cannot be read and are left out."""
    needs = Needs(labels=True)
    for part in ({"cameras": "all"}, {"boxes": True} if reader.dataset.boxes else {}):
        try:
            reader.read(index, replace(needs, **part))
            needs = replace(needs, **part)
        except InputError as error:
            print(f"no {next(iter(part))}: {error}")
    return replace(needs, superpixels=needs.cameras == "all")


def _colours(names: tuple[str, ...], dataset: DataSet) -> np.ndarray:
    """Colours of a network's classes: those of the data set that has them; InputError if none does."""
    for record in (dataset, *map(find_dataset, DATASETS)):
        if record.classes == names:
            return record.colours
    raise InputError(f"no data set here has the network's classes ({', '.join(names)}); choose other --weights.")


def _box_colours(names: tuple[str, ...], dataset: DataSet) -> np.ndarray:
    """Colours of a detector's classes, likewise."""
    for record in (dataset, *map(find_dataset, DATASETS)):
        if record.boxes == names:
            return record.box_colours
    raise InputError(
        f"no data set here has boxes of the network's classes ({', '.join(names)}); choose other --weights."
    )
