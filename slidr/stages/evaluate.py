"""The mIoU of a saved segmentation network on a split."""

from pathlib import Path

from data.disk import InputError
from slidr.config import Evaluate
from slidr.downstream import finish, open_labelled, segmentation_loader, start
from slidr.student import Student, StudentSpec, load_weights, newest_checkpoint, read_checkpoint
from slidr.training import prepare


def run(settings: Evaluate) -> dict:
    """Evaluate by the settings; `scores` (see ConfusionMatrix) and `folder` of the run."""
    device = prepare(settings)
    path = Path(settings.weights) if settings.weights else newest_checkpoint(settings.output, "linprobe", "fewshot")
    if path is None:
        raise InputError(
            f"there is no probe or fine-tuning under {settings.output}: run `python run.py linprobe` first."
        )
    content = read_checkpoint(path)
    reader = open_labelled(settings, settings.split)
    if tuple(content["classes"]) != reader.classes:
        raise InputError(
            f"{path} knows the classes {', '.join(content['classes'])}; {settings.dataset} has "
            f"{', '.join(reader.classes)}: choose other --weights."
        )
    student = Student(StudentSpec(**content["spec"]), len(reader.classes), bn_momentum=0.02)
    load_weights(student, content, path, with_head=True)
    student.to(device)
    log = start("evaluate", settings, [reader], str(path), student, device)
    loader = segmentation_loader(settings, reader, batch=1, augment=False, shuffle=False)
    return finish(log, settings, student, str(path), reader, loader, device)
