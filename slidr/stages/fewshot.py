"""Few-shot segmentation: fine-tune the whole network on a small share of the labels (paper, section 4.3)."""

from functools import partial

from data.datasets import find_dataset
from data.files import InputError
from data.subsets import choose_subset, write_subset
from slidr.config import Fewshot
from slidr.networks.model_file import TaskRecord
from slidr.repeats import first_run, point_name, repeat, seed_name, sweep
from slidr.tasks.results import published_rows
from slidr.tasks.scores import Outcome
from slidr.tasks.segmentation import FineTuning, Segmentation, open_labelled, train
from slidr.tasks.start import RANDOM, choose_weights, shape_of, starting_student
from slidr.training import Run, prepare


def published(settings: Fewshot) -> Fewshot:
    """The settings with the published subset, schedule and learning rates where none are given.

    Supplement, D.2 (nuScenes) and D.3 (SemanticKITTI).
    """
    dataset, random = find_dataset(settings.dataset), settings.weights == RANDOM
    kitti = dataset.name == "kitti"
    lr = settings.lr or (0.05 if random or kitti else 0.02)
    return settings.model_copy(
        update={
            "subset": settings.subset or dataset.few_labels,
            "epochs": settings.epochs or (100 if kitti or settings.pct == 1 else 50),
            "lr": lr,
            "lr_head": settings.lr_head or (lr if random else 2.0),
        }
    )


def run(settings: Fewshot) -> Outcome:
    """Fine-tune by the settings; of several seeds the mean, of a sweep the folder alone."""
    device = prepare(settings)
    if settings.sweep:
        return run_sweep(settings)
    weights, source = choose_weights("fewshot", published(settings), first_run(settings))
    settings = published(settings.model_copy(update={"weights": weights}))
    train_reader, reader = (open_labelled(settings, split) for split in (settings.train_split, settings.val_split))
    if settings.seeds > 1:
        return repeat("fewshot", run, settings, partial(published_rows, settings, reader, None))

    subset = choose_subset(train_reader, settings.pct, settings.subset, settings.subset_seed)
    student, pretraining = starting_student(settings, len(reader.dataset.classes))
    task = Segmentation(student.to(device), reader)
    record = TaskRecord(stage="fewshot", dataset=reader.dataset.name, pct=settings.pct)
    learner = FineTuning(settings, task, record, pretraining)
    log = Run("fewshot", settings)
    if log.first:
        remark = f"the list {settings.subset}"
        if settings.subset in ("scenes", "frames"):
            which = "every n-th" if settings.subset_seed is None else f"drawn by seed {settings.subset_seed}"
            remark = f"{settings.pct:g} % of the {settings.subset}, {which}"
        write_subset(log.folder / "subset.txt", subset, f"{settings.dataset}, split {settings.train_split}: {remark}")
    return train(log, settings, learner, subset, source, device)


def run_sweep(settings: Fewshot) -> Outcome:
    """Annotation efficiency: fine-tune on every share of `settings.sweep`, pretrained and from random weights."""
    if settings.subset not in (None, "scenes", "frames"):
        raise InputError("`sweep` takes shares of the scenes or frames; drop the list given as `subset`.")
    name = settings.name or f"{settings.dataset}-sweep"
    first = seed_name(point_name(name, "pretrained", settings.sweep[0]), settings.seed)
    weights, _ = choose_weights("fewshot", settings, first)
    reader = open_labelled(settings, settings.val_split)
    alike = settings.model_copy(update=shape_of(weights, settings))
    starts = {"random": RANDOM} if weights == RANDOM else {"pretrained": weights, "random": RANDOM}
    points = {
        line: {
            pct: published(alike.model_copy(update={"sweep": None, "pct": pct, "weights": weights}))
            for pct in settings.sweep
        }
        for line, weights in starts.items()
    }
    folder = settings.output / "fewshot" / name
    sweep("fewshot", run, points, folder, partial(published_rows, settings, reader, "sweep"))
    return Outcome(None, folder)
