"""Points are classified by example images of each class, with which their features are compared (after IGLOSS)."""

from functools import partial
from pathlib import Path

import torch

from data.files import InputError
from slidr import inference
from slidr.config import Zeroshot
from slidr.networks.model_file import Model, apply_layers, class_logits, write_model
from slidr.report import counted
from slidr.tasks.examples import (
    cell_features,
    classifier,
    cut_examples,
    patches,
    read_embeddings,
    read_folder,
    require_width,
)
from slidr.tasks.results import finish
from slidr.tasks.scores import Outcome
from slidr.tasks.segmentation import Segmentation, open_labelled, segmentation_loader
from slidr.tasks.start import pretrained_model
from slidr.training import Run, arithmetic, autocast, prepare
from triton_kernels import backend

SELF_TEST = "The examples were cut from the training images by their points' labels: a self-test of the machinery."


def run(settings: Zeroshot) -> Outcome:
    """Classify and score a split by the settings."""
    device = prepare(settings)
    path = pretrained_model(settings.weights, settings.output)
    network = inference.load(path, device)
    if network.model.image_head is None:
        raise InputError(f"{path} has learned nothing of images; choose --weights that were pretrained with them.")
    reader = open_labelled(settings, settings.split)
    classes = reader.dataset.classes
    examples, about = find_examples(settings, network, classes)
    layers, right = classifier(examples, classes)
    parts = {"class_head": layers, "class_input": "point_head", "classes": classes}
    model = network.model.model_copy(update={"stage": "zeroshot", "task": None, "detector": None} | parts)
    task = Segmentation(network.student, reader, partial(class_logits, model))

    log = Run("zeroshot", settings)
    log.start(
        data=f"{settings.dataset}: {counted(len(reader), 'frame')} to score",
        weights=path,
        student=network.student.describe(),
        examples=about,
        engine=backend.describe(device),
        arithmetic=arithmetic(settings, device),
    )
    loader = segmentation_loader(settings, device, reader, batch=1, train=False)
    with autocast(settings, device):
        scores = task.evaluate(loader)
    if log.first:
        write_model(log.folder / "model.pt", **{name: getattr(model, name) for name in Model.model_fields})
    never = [name for name in classes[1:] if name not in examples]
    remark = (
        f"{about} Of their own features {right:.0f} % are told right. Never predicted, for lack of examples: "
        f"{', '.join(never) or 'none'}."
    )
    return finish(log, settings, task, reader, scores, str(path), remark=remark)


def find_examples(
    settings: Zeroshot, network: inference.Network, classes: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], str]:
    """Class -> the teacher's features `[n, C]` of its examples, and in a sentence where they come from.

    Raises InputError for examples or an image network that cannot be had.
    """
    place = Path(settings.prototypes)
    if settings.prototypes != "auto" and place.is_file():
        given = read_embeddings(place, classes)
        for name, rows in given.items():
            require_width(network, rows.shape[1], f"`{name}` in {place}")
        found = {name: apply_layers(network.model.image_head, rows) for name, rows in given.items()}
        return found, f"Examples: {sum(map(len, found.values())):,} features of {len(found)} classes in {place}."
    if settings.prototypes != "auto" and not place.is_dir():
        raise InputError(f"`prototypes` cannot be {place}: it is auto, a folder of <class>/*.jpg, or a .npz file.")
    teacher, sentence = inference.open_image_network(network.model, settings)
    if teacher is None:
        reason = sentence.removeprefix("Pixels have no features: ")
        raise InputError(f"the image network to compare points with cannot be had: {reason}")
    require_width(network, teacher.channels, f"the image network {teacher.name}")
    if settings.prototypes == "auto":
        train = open_labelled(settings, settings.train_split)
        cells = partial(cell_features, network, teacher, size=min(settings.crop))
        found = cut_examples(train, cells, settings.per_class, settings.frames, settings.seed)
        kind, said = "pieces of images", SELF_TEST
    else:
        found = {
            name: [patches(cell_features(network, teacher, image, settings.crop)) for image in images]
            for name, images in read_folder(place, classes).items()
        }
        kind, said = "images", "No label of a point was used."
    what = f"{sum(map(len, found.values())):,} {kind} of {len(found)} classes ({settings.prototypes})"
    about = f"Examples: {what}, seen by {teacher.name} ({teacher.source}). {said}"
    return {name: torch.cat(rows) for name, rows in found.items()}, about
