"""The figures of a saved segmentation network or detector on a split, and files for the benchmarks' servers."""

from pathlib import Path

from data.datasets import open_reader
from data.files import InputError, printable
from data.subsets import choose_subset
from slidr.config import Evaluate
from slidr.networks.model_file import load_detector, load_segmenter, newest_model, read_model
from slidr.report import counted
from slidr.tasks.detection import Detection, detection_loader, with_boxes
from slidr.tasks.results import finish
from slidr.tasks.scores import Outcome
from slidr.tasks.segmentation import Segmentation, segmentation_loader, with_labels
from slidr.training import Run, arithmetic, distributed, prepare
from triton_kernels import backend


def run(settings: Evaluate) -> Outcome:
    """Evaluate by the settings; no scores where the split has no labels."""
    device = prepare(settings)
    trained = "linprobe", "fewshot", "detect"
    path = Path(settings.weights) if settings.weights else newest_model(settings.output, *trained)
    if path is None:
        raise InputError(
            f"there is no probe or fine-tuning under {settings.output}: run `python run.py linprobe` first."
        )
    model = read_model(path)
    detects = model.detector is not None
    network, *head = (load_detector(model, path),) if detects else load_segmenter(model, path)
    network = network.to(device)
    if settings.subset and settings.submission:
        raise InputError("`submission` needs the whole split; drop `subset`.")
    if settings.submission and distributed.world() > 1:
        raise InputError("`submission` is written by one process; start run.py without torchrun.")

    with distributed.first_goes_first():
        reader = open_reader(settings.dataset, settings.root, settings.split, settings.read_options())
    dataset = reader.dataset
    what, known, classes, writer = "labels", model.classes, dataset.classes, dataset.submission
    if detects:
        what, known, classes, writer = "boxes", model.detector.classes, dataset.boxes, dataset.detection_submission
    if settings.subset:
        reader = choose_subset(reader, 100, str(settings.subset))
    labelled = (with_boxes if detects else with_labels)(reader)
    if settings.submission is None:
        reader = labelled
    if not len(reader):
        raise InputError(
            f"the split `{settings.split}` of {settings.dataset} has no {what}; choose another split, or pass "
            "--submission FOLDER to write files for the benchmark's server."
        )
    if known != classes:
        raise InputError(
            f"{path} knows {len(known)} classes ({printable(', '.join(known), 80)}); "
            f"{settings.dataset} has {len(classes)} ({printable(', '.join(classes), 80)}): choose other --weights."
        )
    if settings.submission and writer is None:
        raise InputError(f"{settings.dataset} has no benchmark server, hence no files for it; drop --submission.")
    submission = writer(settings.submission, reader, settings.split) if settings.submission else None

    task = (Detection if detects else Segmentation)(network, reader, *head)
    log = Run("evaluate", settings)
    log.start(
        data=f"{settings.dataset}: {counted(len(reader), 'frame')} to evaluate on",
        weights=path,
        network=task.describe(),
        engine=backend.describe(device),
        arithmetic=arithmetic(settings, device),
    )
    loader_of = detection_loader if detects else segmentation_loader
    loader = loader_of(settings, device, reader, batch=1, train=False)
    scores = task.evaluate(loader, submission.write if submission else None)
    if submission:
        print(f"submission: {submission.finish() if detects else submission.describe()}")
    return finish(log, settings, task, reader, scores if len(labelled) else None, str(path), path)
