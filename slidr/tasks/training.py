"""One training run of a task, from its first line to its report."""

import math
import shutil
from collections.abc import Callable

import torch

from data.datasets.dataset import Reader
from data.files import InputError, atomic_write
from data.loading import Loader
from slidr.config import Downstream
from slidr.report import counted
from slidr.tasks.learner import TaskLearner, TrainedTask
from slidr.tasks.results import finish
from slidr.tasks.scores import Outcome, Scores
from slidr.training import Run, arithmetic, distributed, fit
from triton_kernels import backend


def train(
    log: Run,
    settings: Downstream,
    learner: TaskLearner,
    loader_of: Callable[..., Loader],
    reader: Reader,
    source: str,
    device: torch.device,
) -> Outcome:
    """Train, validate, score the last epoch or the best one (`settings.keep`), report.

    Args:
        log: the run.
        learner: what is trained, on `device`; its task is what it is scored on.
        loader_of: makes the task's batches, called as (settings, device, reader, batch, train=, augment=).
        reader: the frames to train on.
        source: where the weights come from.
    """
    task = learner.task
    log.start(
        data=f"{settings.dataset}: {counted(len(reader), 'frame')} to train on and "
        f"{counted(len(task.reader), 'frame')} to evaluate on",
        weights=source,
        network=task.describe(),
        engine=backend.describe(device),
        arithmetic=arithmetic(settings, device),
    )
    loader = loader_of(settings, device, reader, settings.batch, train=True, augment=settings.augment)
    val_loader = loader_of(settings, device, task.reader, settings.batch, train=False)
    found: dict[int, Scores] = {}

    def validate(epoch: int) -> dict[str, float]:
        found[epoch] = task.evaluate(val_loader)
        return found[epoch].row()

    fit(log, settings, learner, loader, validate)
    model, scores, remark = log.folder / "model.pt", found.get(settings.epochs), ""
    if settings.keep == "best":
        task, epoch = best_of(log, learner, device)
        scores, remark = None, f"Scored is epoch {epoch} of {settings.epochs}. {settings.remark}"
    scores = scores or task.evaluate(val_loader)  # a run that was cut off after its last validation has none either
    if log.first and settings.keep == "best":
        with atomic_write(model) as temporary:
            shutil.copyfile(log.folder / "best.pt", temporary)
    elif log.first:
        learner.write_model(model)
    return finish(log, settings, task, task.reader, scores, settings.weights, model, remark)


def best_of(log: Run, learner: TaskLearner, device: torch.device) -> tuple[TrainedTask, int]:
    """The task with the network of best.pt, and the epoch, counted from 1, that it is of.

    Raises InputError if best.pt could not be written, or the log has lost its validations.
    """
    path, figure = log.folder / "best.pt", learner.best[0]
    with distributed.first_goes_first():  # the first process writes it
        task = learner.task_of(path, device)
    validated = [row for row in log.rows if math.isfinite(row.get(figure, math.nan))]
    if not validated:
        raise InputError(f"{log.folder / 'metrics.jsonl'} has lost the figures of its validations; start a new run.")
    best = max(validated, key=lambda row: row[figure])
    return task, best["epoch"] + 1
