"""Detection: fine-tune a lidar network with a head for boxes on a share of the labels."""

from functools import partial

from data.datasets import find_dataset
from slidr.config import Detect
from slidr.networks.detector import Detector, DetectorSpec
from slidr.networks.model_file import TaskRecord
from slidr.repeats import first_run, repeat
from slidr.tasks.detection import Detection, DetectionLearner, detection_loader, open_with_boxes
from slidr.tasks.results import published_rows
from slidr.tasks.scores import Outcome
from slidr.tasks.shares import one_weights, record_share, share_of, sweep_shares
from slidr.tasks.start import choose_weights, starting_student
from slidr.tasks.training import train
from slidr.training import Run, prepare


def run(settings: Detect) -> Outcome:
    """Fine-tune by the settings; of several seeds the mean, of a sweep the folder alone."""
    device = prepare(settings)
    if settings.sweep:
        return sweep_shares("detect", run, settings, complete, open_with_boxes)
    one_weights(settings)
    weights, source = choose_weights("detect", complete(settings), first_run(settings))
    settings = complete(settings.model_copy(update={"weights": weights}))
    train_reader, reader = (open_with_boxes(settings, split) for split in (settings.train_split, settings.val_split))
    if settings.seeds > 1:
        return repeat("detect", run, settings, partial(published_rows, settings, reader, None))

    subset = share_of(train_reader, settings)
    student, pretraining = starting_student(settings, None)
    spec = DetectorSpec(**{name: getattr(settings, name) for name in DetectorSpec.model_fields})
    task = Detection(Detector(student, reader.dataset.boxes, spec).to(device), reader)
    record = TaskRecord(stage="detect", dataset=reader.dataset.name, pct=settings.pct, epoch=settings.keep)
    learner = DetectionLearner(settings, task, record, pretraining)
    log = Run("detect", settings)
    record_share(log, settings, subset)
    return train(log, settings, learner, detection_loader, subset, source, device)


def complete(settings: Detect) -> Detect:
    """The settings with what they leave open."""
    dataset = find_dataset(settings.dataset)
    changes = {"subset": settings.subset or dataset.few_labels, "lr_head": settings.lr_head or settings.lr}
    return settings.model_copy(update=changes)
