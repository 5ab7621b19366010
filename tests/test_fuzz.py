"""Every kind of file that is read, damaged in 520 ways: each ends in one sentence, in the same result, or, where the
format has no checksum, in another value. Nothing ends in a traceback, hangs, or speaks to the terminal.
"""

import faulthandler
import io
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image

from data.datasets import find_dataset
from data.datasets.synthetic import SyntheticWorld, write_kitti, write_kitti_object, write_nuscenes
from run import main
from slidr.networks.model_file import backbone_weights, head_layers, write_model
from slidr.networks.student import Student, StudentSpec
from slidr.teachers import load_teacher

pytestmark = pytest.mark.slow

CASES = 26  # of each kind
TINY = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=2, image_scale=0.05, azimuths=24)
SPEC = StudentSpec(architecture="res16unet14c", width=0.03, grid="cylindrical", voxel_size=(1, 4, 1))
NETWORK = ["--architecture=res16unet14c", "--width=0.03", "--voxel_size=1,4,1"]
QUICK = ["--workers=0", "--name=r"]
EVALUATE = ["evaluate", *QUICK, "--pictures=0", "--compare=false"]
NUSCENES = [*EVALUATE, "--dataset=nuscenes", "--root=W/nuscenes", "--weights=nuscenes.pt"]
KITTI = [*EVALUATE, "--dataset=kitti", "--root=W/kitti", "--weights=kitti.pt"]
SHOW = ["show", "--workers=0", "--dataset=kitti", "--root=W/kitti", "--segments=9", "--weights=kitti.pt"]
PRETRAIN = ["pretrain", *QUICK, *NETWORK, "--root=W", "--epochs=1", "--batch=2"]
TEACHER = [*PRETRAIN, "--crop=24,40", "--segments=9", "--min_pairs=1", "--teacher_weights=teacher.pth"]
POSES = [
    *PRETRAIN,
    "--root=W/kitti",
    "--dataset=kitti",
    "--method=pointcontrast",
    "--min_distance=1",
    "--min_matches=1",
    "--train_split=val",
]
PROBE = ["linprobe", *QUICK, "--root=W", "--weights=nuscenes.pt", "--epochs=2", "--batch=2", "--pictures=0"]
SEEDS = [*PROBE, "--seeds=2", "--epochs=1", "--name=s"]
AGAIN = [*PROBE, "--resume"]
DETECT = [
    *["detect", *QUICK, *NETWORK, "--weights=random", "--pct=100", "--epochs=1", "--batch=2", "--pictures=0"],
    *["--bev_channels=8", "--cell=6.4", "--area=-51.2,-51.2,51.2,51.2"],
]
OBJECT = ["--dataset=kitti_object", "--root=W/object"]
DETECTOR = [*EVALUATE, *OBJECT, "--weights=output/detect/d/model.pt"]
SUPERPIXELS = ["superpixels", "recipe.yaml", "--root=W", "--workers=0"]
OF_A_RUN = "output/linprobe/r/"

# Kind -> the files (one of them is damaged), the command that reads them, whether the format tells of any damage
KINDS: dict[str, tuple[str, list[str], bool]] = {
    "nuScenes scan": ("W/nuscenes/samples/LIDAR_TOP/*", NUSCENES, False),
    "nuScenes labels": ("W/nuscenes/lidarseg/*/*.bin", NUSCENES, False),
    "nuScenes table": ("W/nuscenes/v1.0-*/[!s]*.json", NUSCENES, False),
    "nuScenes scenes and splits": ("W/nuscenes/v1.0-*/s*.json", NUSCENES, False),
    "index": ("output/index/*.npz", NUSCENES, True),
    "KITTI scan": ("W/kitti/dataset/sequences/08/velodyne/*", KITTI, False),
    "KITTI labels": ("W/kitti/dataset/sequences/08/labels/*", KITTI, False),
    "calibration": ("W/kitti/dataset/sequences/08/calib.txt", SHOW, False),
    "poses": ("W/kitti/dataset/sequences/08/poses.txt", POSES, False),
    "annotations": ("W/nuscenes/v1.0-*/*an*.json", [*DETECT, "--dataset=nuscenes", "--root=W/nuscenes"], False),
    "boxes and calibration": ("W/object/training/[cl]*/*.txt", [*DETECT, *OBJECT], False),
    "detector": ("output/detect/d/model.pt", DETECTOR, True),
    "image": ("W/kitti/dataset/sequences/08/image_2/000000.png", SHOW, False),
    "superpixel map": ("superpixels/kitti/*/08_000000.png", SHOW, False),
    "teacher": ("teacher.pth", TEACHER, True),
    "model": ("nuscenes.pt", NUSCENES, True),
    "recipe": ("recipe.yaml", SUPERPIXELS, False),
    "checkpoint": (f"{OF_A_RUN}checkpoints/*", AGAIN, True),
    "settings, log and lock of a run": (f"{OF_A_RUN}[clm]*[!s]", AGAIN, False),
    "scores of a run": ("output/linprobe/s-seed?/scores.json", SEEDS, False),
}


def undrawn(patch: pytest.MonkeyPatch) -> None:
    """Charts and TensorBoard events, which nobody looks at here, take most of a command's time."""
    patch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: Image.new("L", (1, 1)).save(path, "PNG"))
    patch.setattr("slidr.training.run_folder.SummaryWriter", MagicMock())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny world in both layouts, networks, and runs that were cut off or are finished, all in one folder."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        undrawn(patch)
        write_nuscenes(Path("W/nuscenes"), TINY)
        write_kitti(Path("W/kitti"), TINY)
        write_kitti_object(Path("W/object"), TINY)
        torch.manual_seed(0)
        for name, classes in (("nuscenes", 17), ("kitti", 20)):
            student = Student(SPEC, classes, bn_momentum=0.1)
            record = find_dataset(name)
            parts = {"backbone": backbone_weights(student), "class_head": head_layers(student)}
            write_model(Path(f"{name}.pt"), stage="fewshot", spec=SPEC, classes=record.classes, **parts)
        torch.save({"state_dict": load_teacher("resnet_small", "random").network.state_dict()}, "teacher.pth")
        Path("recipe.yaml").write_text("# a recipe\nsegments: 9\ncompactness: 6.0\nroot: W\nsplit: val\nseed: 3\n")
        runs = NUSCENES, SHOW, SEEDS, [*DETECT, *OBJECT, "--name=d"], [*PROBE, "--checkpoint_minutes=0"]
        assert [main(words) for words in runs] == [0] * 5
        for name in ("report.md", "model.pt"):
            Path(OF_A_RUN, name).unlink()
        Path(OF_A_RUN, "lock").write_text("process 1 on a machine")
        shutil.rmtree("output/evaluate")
        yield folder


ODD = [
    b"1e39",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"",
    b"9" * 5000,
    b"[" * 9000,
    b'"\\u001b[2J"',
    b'"\\ud800"',
    b"x" * 10**6,
]


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """The content with one fault: a bit, a piece, its end, or, in text, a word."""
    at, length = chance.randrange(len(raw) or 1), chance.choice((1, 4, 40, 400))
    how = chance.choice(("bit", "bit", "cut", "drop", "twice", "noise", "zeros", "odd", "odd"))
    if how == "odd":
        words = list(re.finditer(rb'"[^"]*"|[\w.+-]+', raw))
        if words and raw.isascii():
            word = chance.choice(words)
            return raw[: word.start()] + chance.choice(ODD) + raw[word.end() :]
        how = "noise"
    piece = {
        "bit": bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 : at + length] if raw else b"\1",
        "cut": b"",
        "drop": b"",
        "twice": raw[at : at + length] * 2,
        "noise": chance.randbytes(length),
        "zeros": bytes(length),
    }[how]
    return raw[:at] + piece + (b"" if how == "cut" else raw[at + length :])


REPLACED: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
    "an empty file": Path.touch,
    "another kind of file": lambda path: path.write_bytes(b"<!DOCTYPE html><html>"),
    "a giant": lambda path: path.touch() or os.truncate(path, 10**13),  # sparse: it takes no space
}


def results() -> object:
    """What a command left that a user would read as its result."""
    scores = sorted(Path("output").glob("*/r/scores.json"))
    return [json.loads(path.read_text()) for path in scores] or sorted(map(str, Path("output/show").rglob("*")))


@pytest.mark.parametrize("kind", KINDS)
def test_damage(kind, place, monkeypatch):
    monkeypatch.chdir(place)
    pattern, words, has_checksum = KINDS[kind]
    files = sorted(path for path in place.glob(pattern) if path.is_file())
    faults, expected = [], None
    for case in range(-1, CASES):
        chance = random.Random(f"{kind} {case}")
        with pytest.MonkeyPatch.context() as patch:
            copy = place.parent / "case"
            shutil.copytree(place, copy)
            patch.chdir(copy)
            undrawn(patch)
            path = copy / chance.choice(files).relative_to(place)
            what = "untouched"
            if 0 <= case < len(REPLACED):
                what = list(REPLACED)[case]
                path.unlink()
                REPLACED[what](path)
            elif case >= 0:
                path.write_bytes(damaged(path.read_bytes(), chance))
                what = f"damaged as case {case}"
            out, err = io.StringIO(), io.StringIO()
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", err)
            faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)  # it hangs
            try:
                code = main(words)
            except BaseException as error:
                code = f"{type(error).__name__}: {error}"
            faulthandler.cancel_dump_traceback_later()
            said, found = out.getvalue() + err.getvalue(), results()
            shutil.rmtree(copy)
        expected = found if case < 0 else expected
        sentence = err.getvalue().strip().rsplit("\n", 1)[-1]
        good = code == 0 and (found == expected or not has_checksum)
        good |= code == 2 and case >= 0 and sentence.startswith(f"run.py {words[0]}: ") and len(sentence) < 500
        if not good or not all(letter.isprintable() for line in said.split("\n") for letter in line.strip("\r")):
            faults.append(f"{path.name}, {what}: {code} {sentence[:300]!r}")
    assert not faults, "\n".join(faults)
