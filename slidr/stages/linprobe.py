"""Linear probing: how much a frozen lidar network already knows of the classes (paper, section 4.2)."""

from functools import partial

from slidr.config import Linprobe
from slidr.networks.model_file import TaskRecord
from slidr.repeats import first_run, repeat
from slidr.tasks.results import published_rows
from slidr.tasks.scores import Outcome
from slidr.tasks.segmentation import LinearProbe, Segmentation, open_labelled, segmentation_loader
from slidr.tasks.start import choose_weights, starting_student
from slidr.tasks.training import train
from slidr.training import Run, prepare


def run(settings: Linprobe) -> Outcome:
    """Probe by the settings; of several seeds the mean."""
    device = prepare(settings)
    weights, source = choose_weights("linprobe", settings, first_run(settings))
    settings = settings.model_copy(update={"weights": weights})
    train_reader, reader = (open_labelled(settings, split) for split in (settings.train_split, settings.val_split))
    if settings.seeds > 1:
        return repeat("linprobe", run, settings, partial(published_rows, settings, reader, None))

    last = len(reader.dataset.classes) if settings.head == "linear" else None
    student, pretraining = starting_student(settings, last)
    task = Segmentation(student.to(device), reader)
    record = TaskRecord(
        stage="linprobe", dataset=reader.dataset.name, pct=100.0, head=settings.head, epoch=settings.keep
    )
    probe = LinearProbe(settings, task, record, pretraining)
    return train(Run("linprobe", settings), settings, probe, segmentation_loader, train_reader, source, device)
