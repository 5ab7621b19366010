"""The k-nearest-neighbour film: labels of a scene's first frame segment its later ones (supplement, A.1)."""

from collections import Counter

import numpy as np

from data.datasets import open_reader
from data.datasets.dataset import Reader
from data.files import InputError
from data.samples.single import Single
from data.subsets import select
from slidr import film, inference, pictures, report
from slidr.config import Knn
from slidr.networks.model_file import Model, backbone_weights, head_layers
from slidr.networks.student import Student
from slidr.tasks.neighbours import Neighbours
from slidr.tasks.scores import Outcome, write_scores
from slidr.tasks.start import network_name, pretrained_model
from slidr.training import Run, arithmetic, autocast, distributed, open_loader, prepare
from triton_kernels import backend


def run(settings: Knn) -> Outcome:
    """Score and film a scene by the settings, beside a random network."""
    device = prepare(settings)
    if distributed.world() > 1:
        raise InputError("a film is made by one process; start run.py without torchrun.")
    path = pretrained_model(settings.weights, settings.output)
    network = inference.load(path, device)
    reader = open_reader(settings.dataset, settings.root, settings.split, settings.read_options())
    scene = one_scene(reader, settings)
    choice = (scene, settings.classes, settings.k, settings.per_class, settings.seed)
    tasks = {
        network_name(str(path)): Neighbours(network, *choice),
        "random network": Neighbours(inference.Network(random_like(network), path, device), *choice),
    }
    task = next(iter(tasks.values()))

    log = Run("knn", settings)
    kept = "all of them" if settings.per_class is None else f"at most {settings.per_class} of a class"
    log.start(
        data=f"{settings.dataset}: {scene.scenes[0]}, {len(scene)} frames",
        weights=path,
        student=network.student.describe(),
        neighbours=f"{settings.k} by cosine, among {task.database}: {kept}",
        engine=backend.describe(device),
        arithmetic=arithmetic(settings, device),
    )
    later, drawn = select(scene, range(1, len(scene))), []

    def draw(frame_id: str, probabilities: np.ndarray) -> None:
        index = scene.ids.index(frame_id)
        drawn.extend(task.draw_probabilities(index, probabilities, log.folder / "frames", f"{index:04d}"))

    columns = {}
    for name, one in tasks.items():
        loader = open_loader(Single(later, one.needs), settings, device, 1, train=False)
        with autocast(settings, device):
            columns[name] = one.evaluate(loader, draw if one is task else None)
    frames = [log.folder / "frames" / name for name in drawn]
    film.write_film(frames, log.folder / "film.mp4")
    film.write_contact_sheet(frames, log.folder / "film.png")

    scores = next(iter(columns.values()))
    write_scores(log.folder / "scores.json", scores)
    report.write_csv(columns, log.folder / "scores.csv")
    pictures.bar_chart(columns, log.folder / "classes.png")
    table = report.score_table(columns)
    log.finish(
        f"# Nearest neighbours {log.folder.name}\n\n"
        f"Weights: {path}. Average precision over the labelled points of the {len(later)} later frames of "
        f"{scene.scenes[0]}, {settings.dataset}. Data base: {task.database}; {kept}.\n\n{table}\n\n"
        f"Again: `python run.py knn {log.folder / 'config.yaml'} --name NEW`\n\n"
        "[film.mp4](film.mp4)\n\n![film](film.png)\n\n![average precision](classes.png)\n"
    )
    print(f"\n{table}\n\nknn: {log.folder / 'film.mp4'}; {log.folder / 'report.md'}")
    return Outcome(scores, log.folder)


def one_scene(reader: Reader, settings: Knn) -> Reader:
    """The frames of the settings' scene, in order; InputError if there is none of at least two frames."""
    lengths = Counter(reader.scenes)
    name = settings.scene or next((scene for scene, frames in lengths.items() if frames > 1), None)
    where = f"the split `{settings.split}` of {settings.dataset}"
    if name is None:
        raise InputError(f"every scene of {where} has one frame, a film needs two; choose another --split.")
    if name not in lengths:
        few = ", ".join([*lengths][:5]) + (" ..." if len(lengths) > 5 else "")
        raise InputError(f"{where} has no scene `{name}`; it has {few}.")
    if lengths[name] < 2:
        raise InputError(f"the scene `{name}` has one frame, a film needs two; choose another --scene.")
    return select(reader, [i for i, scene in enumerate(reader.scenes) if scene == name])


def random_like(network: inference.Network) -> Model:
    """A random network of the same shape, its last layer included."""
    model = network.model
    channels = len(model.point_head[-1]["bias"]) if model.point_head else None
    student = Student(model.spec, channels, bn_momentum=0.05)
    return model.model_copy(update={"backbone": backbone_weights(student), "point_head": head_layers(student)})
