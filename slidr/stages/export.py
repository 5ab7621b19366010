"""A pretrained network for other programs: the files that they need."""

import shlex
from pathlib import Path

from data.datasets import find_dataset
from data.files import atomic_write, open_file, write_text
from slidr.config import Export
from slidr.networks.model_file import load_student, read_model
from slidr.tasks.start import pretrained_model

TEMPLATES = Path(__file__).parents[1] / "openpcdet"
PROGRAM = Path(__file__).resolve().parents[2]


def run(settings: Export) -> Path:
    """Write the backbone, its weights, a configuration and a page for OpenPCDet; the folder."""
    path = pretrained_model(settings.weights, Path("output"))
    student = load_student(read_model(path), path, None, bn_momentum=0.02)
    folder = settings.output.resolve()
    values = {
        "@WEIGHTS@": f"'{str(folder / 'model.pt').replace(chr(39), 2 * chr(39))}'",  # as YAML quotes a text
        "@OFFSET@": f"{find_dataset('kitti').intensity_offset:g}",
        "@CHANNELS@": str(student.network.channels),
        "@FOLDER@": shlex.quote(str(folder)),
        "@PROGRAM@": shlex.quote(str(PROGRAM)),
    }
    with open_file(path) as source, atomic_write(folder / "model.pt") as temporary:
        temporary.write_bytes(source.read())
    for name in ("slidr_unet.py", "pointrcnn_slidr.yaml", "README.md"):
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        for mark, value in values.items():
            text = text.replace(mark, value)
        write_text(folder / name, text)
    print(f"export: {path} -> {folder}: {student.describe()}; next: {folder / 'README.md'}")
    return folder
