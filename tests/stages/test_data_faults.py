"""Faults of data as a user meets them: killed workers, unplugged and truncated data sets, bad frames."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from slidr.networks.model_file import backbone_weights, head_layers, write_model
from slidr.networks.student import Student, StudentSpec
from tests.stages.conftest import SMALL
from tests.stages.test_bad_input import FEWSHOT, SEQUENCE, first, nothing_half_written

ROOT = Path(__file__).resolve().parents[2]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition, process) -> None:
    """Wait for the condition, as long as the process lives."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def training(command):
    """A pretraining of many epochs in a process of its own, with one worker, after its first steps."""
    words = [
        "pretrain",
        "--root=world",
        "--name=run",
        *SMALL,
        "--workers=1",
        "--epochs=10000",
        "--validate_every=10000",
    ]
    process = subprocess.Popen(
        [sys.executable, ROOT / "run.py", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = Path("output/pretrain/run/metrics.jsonl")
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    yield process
    process.kill()
    process.wait()


def sentence_of(process: subprocess.Popen) -> str:
    """What a process that must exit with 2 says."""
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err, err
    nothing_half_written()
    (line,) = [line for line in err.splitlines() if line.startswith("run.py ")]
    return line


@pytest.mark.slow
def test_a_killed_worker(training):
    worker = max(children(training.pid))
    os.kill(worker, signal.SIGKILL)
    assert sentence_of(training) == (
        "run.py pretrain: a process that prepares data died (Killed): the machine probably ran out of memory; "
        "lower --workers or --batch."
    )


@pytest.mark.slow
def test_an_unplugged_data_set(training):
    Path("world").rename("away")
    sentence = sentence_of(training)
    assert sentence.startswith("run.py pretrain: the data set is gone: world/nuscenes/samples is no longer there")


@pytest.mark.parametrize("broken", ["000000", "000001"])
def test_a_bad_frame_among_those_to_train_on(command, broken):
    """Also the first, from which the stages learn whether there are labels."""
    for name in ("labels/000001.label", "velodyne/000001.bin"):
        (SEQUENCE / name).write_bytes((SEQUENCE / name.replace("000001", "000000")).read_bytes())
    (SEQUENCE / "poses.txt").unlink()  # which has a line for the first scan only
    path = SEQUENCE / f"velodyne/{broken}.bin"
    path.write_bytes(path.read_bytes()[:-3])
    words = [*FEWSHOT, "--max_bad_frames=0.4", "--pictures=0", "--epochs=2"]
    code, _, err = command(*words)
    assert code == 0, err
    assert err.count(f"frame 00_{broken} is left out") == 1 and "is truncated" in err
    for path in Path("world/kitti/dataset/sequences/01/velodyne").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    sentence = command.refused(*words, "--name=more")
    assert "2 of 3 frames cannot be read, more than --max_bad_frames allows" in sentence


def cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


KITTI = ["show", "--dataset=kitti", "--root=world/kitti", "--split=train"]
PAIRS = ["pretrain", "--method=pointcontrast", *KITTI[1:3], "--train_split=train", "--val_split=train", "--workers=0"]


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
@pytest.mark.parametrize("table", ["scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor"])
def test_a_truncated_table(command, table, keep):
    path = cut(first(f"{table}.json"), keep)
    assert str(path) in command.refused("show", "--root=world")


@pytest.mark.parametrize("name", ["calib.txt", "poses.txt", "image_2/000000.png", "velodyne/000000.bin"])
@pytest.mark.parametrize("keep", [0.1, 0.4, 0.8])
def test_a_truncated_file_of_a_sequence(command, name, keep):
    path = cut(SEQUENCE / name, keep)
    if name.startswith("velodyne"):
        path.write_bytes(path.read_bytes() + b"x" * (3 if path.stat().st_size % 2 == 0 else 2))
    assert str(path) in command.refused(*(PAIRS if name == "poses.txt" else KITTI))  # poses are read by few


@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.9, 0.999])
def test_a_truncated_model(command, keep):
    spec = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))
    student = Student(spec, 17, 0.1)
    heads = {"class_head": head_layers(student), "classes": ("a",)}
    write_model(Path("model.pt"), stage="linprobe", spec=spec, backbone=backbone_weights(student), **heads)
    assert torch.load("model.pt", weights_only=True)["stage"] == "linprobe"
    cut(Path("model.pt"), keep)
    assert "model.pt is no checkpoint" in command.refused("evaluate", "--weights=model.pt", "--root=world")
    words = ["--source=model.pt", "--target=x.pt", "--to=minkowski"]
    assert "model.pt is no checkpoint" in command.refused("convert", *words) and not Path("x.pt").exists()
