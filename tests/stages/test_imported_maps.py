"""Maps of a segmentation model, from its folder to the last step of pretraining."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets import open_reader
from tests.stages.conftest import SMALL

WORDS = ["--root=world", "--superpixels=classes", "--workers=0"]
TRAIN = [*WORDS, *(word for word in SMALL if not word.startswith(("--segments", "--workers"))), "--name=run"]


@pytest.fixture
def theirs() -> Path:
    """Two classes in each image: its upper half is none of them, its lower half is 7 on the left and 8 on the right."""
    for token, file in open_reader("synthetic", Path("world"), "all").image_files():
        ids = np.zeros(np.asarray(Image.open(file)).shape[:2], np.uint8)
        ids[len(ids) // 2 :] = 7
        ids[len(ids) // 2 :, ids.shape[1] // 2 :] = 8
        Path("theirs").mkdir(exist_ok=True)
        Image.fromarray(ids).save(f"theirs/{token}.png")
    return Path("theirs")


@pytest.mark.parametrize("method", ["slidr", "st_slidr"])
def test_pretraining_on_maps_that_cameras_share(command, theirs, method):
    """A step counts two superpixels a frame, of the two that the lower halves make in six cameras."""
    code, out, err = command("superpixels", "--maps", theirs, *WORDS)
    assert code == 0, err
    assert "18 maps of theirs imported to superpixels/synthetic/superpixels_classes, 0 of them renumbered" in out
    keys = ["--superpixel_zero=none", "--superpixel_ids=frame"]
    code, out, err = command("pretrain", f"--method={method}", *TRAIN, *keys)
    assert code == 0, err
    assert "classes, 0 is none, ids shared by the cameras of a frame" in out
    row = json.loads(Path("output/pretrain/run/metrics.jsonl").read_text().splitlines()[0])
    assert row["superpixels"] == 4  # of two frames


def test_maps_that_are_not_there(command, theirs):
    sentence = command.refused("pretrain", *TRAIN)
    assert "no folder superpixels/synthetic/superpixels_classes" in sentence and "--maps FOLDER" in sentence
    next(theirs.iterdir()).unlink()
    assert "there is no map of the image" in command.refused("superpixels", "--maps", theirs, *WORDS)
    assert command("superpixels", "--maps", theirs, *WORDS[:-1], "--workers=1")[0] == 2
