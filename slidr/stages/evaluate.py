"""The mIoU of a saved segmentation network on a split, and files for the benchmarks' servers."""

from pathlib import Path

from data.datasets import open_reader
from data.disk import InputError
from data.submission import Submission
from data.subsets import choose_subset
from slidr.config import Evaluate
from slidr.downstream import count, finish, has_labels, scores_of, segmentation_loader, start
from slidr.student import Student, StudentSpec, load_weights, newest_checkpoint, read_checkpoint
from slidr.training import distributed, prepare


def run(settings: Evaluate) -> dict:
    """Evaluate by the settings; `scores` (see downstream.scores_of; None without labels) and `folder` of the run."""
    device = prepare(settings)
    path = Path(settings.weights) if settings.weights else newest_checkpoint(settings.output, "linprobe", "fewshot")
    if path is None:
        raise InputError(
            f"there is no probe or fine-tuning under {settings.output}: run `python run.py linprobe` first."
        )
    content = read_checkpoint(path)
    reader = open_reader(settings.dataset, settings.root, settings.split)
    if settings.subset and settings.submission:
        raise InputError("`submission` needs the whole split; drop `subset`.")
    if settings.subset:
        reader = choose_subset(reader, 100, str(settings.subset))
    if settings.submission and distributed.world() > 1:
        raise InputError("`submission` is written by one process; start run.py without torchrun.")
    labelled = has_labels(reader)
    if not labelled and settings.submission is None:
        raise InputError(
            f"the split `{settings.split}` of {settings.dataset} has no labels; choose another split, or pass "
            "--submission FOLDER to write files for the benchmark's server."
        )
    if tuple(content["classes"]) != reader.classes:
        raise InputError(
            f"{path} knows {len(content['classes'])} classes ({', '.join(content['classes'])}); {settings.dataset} has "
            f"{len(reader.classes)} ({', '.join(reader.classes)}): choose other --weights."
        )
    student = Student(StudentSpec(**content["spec"]), len(reader.classes), bn_momentum=0.02)
    load_weights(student, content, path, with_head=True)
    student.to(device)
    submission = Submission(settings.submission, reader, settings.split) if settings.submission else None
    log = start("evaluate", settings, [reader], str(path), student, device)
    loader = segmentation_loader(settings, device, reader, batch=1, augment=False, shuffle=False)
    counts = count(student, loader, len(reader.classes), device, submission.write if submission else None)
    if submission:
        print(f"submission: {submission.describe()}")
    return finish(
        log, settings, student, content.get("task"), str(path), reader, scores_of(*counts) if labelled else None, device
    )
