"""Few-shot segmentation: fine-tune the whole network on a small share of the labels (paper, section 4.3)."""

from functools import partial

from data.datasets import find_dataset
from data.files import InputError
from slidr.config import Fewshot
from slidr.networks.model_file import TaskRecord
from slidr.repeats import first_run, repeat, search, seed_name
from slidr.tasks.results import published_rows
from slidr.tasks.scores import Outcome
from slidr.tasks.segmentation import FineTuning, Segmentation, open_labelled, segmentation_loader
from slidr.tasks.shares import one_weights, record_share, share_of, sweep_shares
from slidr.tasks.start import RANDOM, choose_weights, starting_student
from slidr.tasks.training import train
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
    """Fine-tune by the settings; of several seeds the mean, of a search the best mean, of a sweep the folder alone."""
    device = prepare(settings)
    if settings.sweep and not settings.search:
        return sweep_shares("fewshot", run, settings, published, open_labelled)
    one_weights(settings)
    if settings.search:
        return run_search(settings)
    weights, source = choose_weights("fewshot", published(settings), first_run(settings))
    settings = published(settings.model_copy(update={"weights": weights}))
    train_reader, reader = (open_labelled(settings, split) for split in (settings.train_split, settings.val_split))
    if settings.seeds > 1:
        return repeat("fewshot", run, settings, partial(published_rows, settings, reader, None))

    subset = share_of(train_reader, settings)
    student, pretraining = starting_student(settings, len(reader.dataset.classes))
    task = Segmentation(student.to(device), reader)
    record = TaskRecord(stage="fewshot", dataset=reader.dataset.name, pct=settings.pct, epoch=settings.keep)
    learner = FineTuning(settings, task, record, pretraining)
    log = Run("fewshot", settings)
    record_share(log, settings, subset)
    return train(log, settings, learner, segmentation_loader, subset, source, device)


def run_search(settings: Fewshot) -> Outcome:
    """Choose both learning rates for these weights and labels (supplement, D.2 and D.3)."""
    if settings.sweep:
        raise InputError("`search` chooses the rates of one share of the labels: give one --pct, no --sweep.")
    name = settings.name or f"{settings.dataset}-{settings.pct:g}pct-search"
    lrs = [settings.lr] if settings.lr else sorted(settings.search_lr)
    heads = [settings.lr_head] if settings.lr_head else sorted(settings.search_lr_head)

    def point_of(lr: float, head: float) -> str:
        return f"{name}-lr{lr:g}-head{head:g}"

    weights, _ = choose_weights("fewshot", settings, seed_name(point_of(lrs[0], heads[0]), settings.seed))
    settings = settings.model_copy(update={"search": False, "weights": weights, "name": None, "resume": False})
    final = settings.train_split, settings.val_split
    train_split, val_split = splits = find_dataset(settings.dataset).tuning.get(final, final)
    remark = f"Trained on the split `{train_split}`, scored on `{val_split}`, "
    if splits == final:
        remark += "of which final scores are, too: they flatter. (Published rates of KITTI were chosen on sequence 08.)"
    else:
        remark += f"which share no scene with each other or with `{final[1]}`, of which final scores are."
    if weights == RANDOM and not settings.lr_head:
        heads = [None]  # one rate for the whole network, as published
    points = {"as lr" if head is None else f"{head:g}": {} for head in heads}
    for line, head in zip(points, heads, strict=True):
        for lr in lrs:
            rates = {"lr": lr, "lr_head": head, "name": point_of(lr, head or lr)}
            changes = rates | {"train_split": train_split, "val_split": val_split}
            points[line][lr] = published(settings.model_copy(update=changes))
    return search("fewshot", run, points, settings, settings.output / "fewshot" / name, remark)
