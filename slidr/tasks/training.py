"""One training run of a task, from its first line to its report."""

from collections.abc import Callable

import torch

from data.datasets.dataset import Reader
from data.loading import Loader
from slidr.config import Downstream
from slidr.report import counted
from slidr.tasks.learner import TaskLearner
from slidr.tasks.results import finish
from slidr.tasks.scores import Outcome, Scores
from slidr.training import Run, arithmetic, fit
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
    """Train, validate, score at the end, report.

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
    # a run that was cut off after its last validation has none
    scores = found[settings.epochs] if settings.epochs in found else task.evaluate(val_loader)
    if log.first:
        learner.write_model(log.folder / "model.pt")
    return finish(log, settings, task, task.reader, scores, settings.weights, log.folder / "model.pt")
