"""Faults of data as a user meets them: killed workers, unplugged and truncated data sets, bad frames."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from scipy.spatial.transform import Rotation

import slidr
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
    assert re.search(r"model.pt is .*; get it again", command.refused("evaluate", "--weights=model.pt", "--root=world"))
    words = ["--source=model.pt", "--target=x.pt", "--to=minkowski"]
    assert re.search(r"model.pt is .*; get it again", command.refused("convert", *words)) and not Path("x.pt").exists()


# Labels

TABLES = Path("world/nuscenes/v1.0-synthetic")
LIDARSEG = Path("world/nuscenes/lidarseg/v1.0-synthetic")
NETWORK = ["--weights=random", "--architecture=res16unet14c", "--width=0.25", "--epochs=1", "--workers=0"]
PROBE = ["linprobe", "--root=world", *NETWORK, "--pictures=0"]


def rewrite(name: str, change) -> None:
    """Change the rows of a table in place."""
    rows = json.loads((TABLES / f"{name}.json").read_text())
    change(rows)
    (TABLES / f"{name}.json").write_text(json.dumps(rows))


def scores_of(stage: str, name: str) -> dict:
    return json.loads(Path(f"output/{stage}/{name}/scores.json").read_text())


def evaluated(command, name: str, *words: object) -> dict:
    """The scores of the network that `fewshot` left as `f`."""
    words = ["evaluate", "--weights=output/fewshot/f/model.pt", "--workers=0", "--pictures=0", f"--name={name}", *words]
    code, _, err = command(*words)
    assert code == 0, err
    return scores_of("evaluate", name)


def test_a_data_set_numbers_its_categories_itself(command):
    assert command("fewshot", "--root=world", "--pct=100", "--name=f", "--pictures=0", *NETWORK)[0] == 0
    official = evaluated(command, "official", "--root=world")
    names = [row["name"] for row in json.loads((TABLES / "category.json").read_text())]
    number = np.array([sorted(names).index(name) for name in names], np.uint8)
    rewrite("category", lambda rows: [row.update(index=int(number[row["index"]])) for row in rows])
    for file in LIDARSEG.iterdir():
        number[np.fromfile(file, np.uint8)].tofile(file)
    assert evaluated(command, "alphabetical", "--root=world") == official
    again = ["evaluate", "--root=world", "--weights=output/fewshot/f/model.pt", "--workers=0"]
    rewrite("category", lambda rows: rows[24].update(name="flat.road"))  # the driveable surface
    assert "category.json names 'flat.road', none of" in command.refused(*again)
    rewrite("category", lambda rows: rows.pop(24))
    assert f"has the label {number[24]}, which category.json does not name" in command.refused(*again)
    assert command("show", "--root=world", "--segments=20", "--sigma=1")[0] == 0  # no labels, no question
    rewrite("category", lambda rows: rows[0].update(index=int(number[1])))
    assert "category.json gives" in command.refused(*again)


def test_frames_without_labels_are_left_out(command):
    """All three scenes are trained and scored on; the second has no labels."""
    splits = json.loads((TABLES / "splits.json").read_text())
    scenes = splits["train"] + splits["val"]
    (TABLES / "splits.json").write_text(json.dumps({"train": scenes, "val": scenes}))
    tokens = [row["sample_data_token"] for row in json.loads((TABLES / "lidarseg.json").read_text())]
    Path("two.txt").write_text("\n".join(tokens[::2]))
    assert command("fewshot", "--root=world", "--pct=100", "--name=f", "--pictures=0", *NETWORK)[0] == 0
    two = evaluated(command, "two", "--root=world", "--subset=two.txt")
    rewrite("lidarseg", lambda rows: rows.pop(1))
    for batch in (1, 3):
        code, out, err = command(*PROBE, f"--batch={batch}", f"--name=b{batch}")
        assert code == 0, err
        assert err.count("1 of 3 frames have no labels") == 2  # of the split to train on, and that to score on
        assert "2 frames to train on and 2 frames to evaluate on" in out
    assert evaluated(command, "rest", "--root=world") == two
    # one batch of labelled and unlabelled frames, as where a submission is written
    assert evaluated(command, "all", "--root=world", "--submission=handed_in") == two
    assert len(list(Path("handed_in").rglob("*_lidarseg.bin"))) == 3
    rewrite("lidarseg", lambda rows: rows.clear())
    assert "has no labels" in command.refused(*PROBE, "--name=none")


def test_a_sequence_without_labels(command):
    shutil.rmtree(SEQUENCE.parent / "01" / "labels")
    code, _, err = command(*FEWSHOT, "--pictures=0")
    assert code == 0, err
    assert "1 of 2 frames have no labels" in err
    shutil.rmtree(SEQUENCE / "labels")
    assert "the split `train` of kitti has no labels" in command.refused(*FEWSHOT, "--name=none")


# Scans


@pytest.mark.parametrize(
    ("layout", "there", "wide"), [("nuscenes", 5, 4), ("nuscenes", 5, 10), ("kitti", 4, 5), ("kitti", 4, 8)]
)
def test_another_number_of_columns(command, layout, there, wide):
    """Of a length that divides, and also where the columns are said wrongly."""
    files = list(Path("world", layout).rglob("*.bin"))
    files = [file for file in files if "lidarseg" not in file.parts]
    for file in files:
        points = np.fromfile(file, np.float32).reshape(-1, there)
        points = points[: len(points) // 20 * 20, :4]
        rest = np.tile(np.arange(32, dtype=np.float32), len(points))[: len(points), None]
        rest = np.column_stack([rest, np.full((len(points), 5), 1.6e9, np.float32)])
        np.column_stack([points, rest]).astype(np.float32)[:, :wide].tofile(file)
    dataset = ["--dataset=kitti", "--root=world/kitti"] if layout == "kitti" else ["--root=world"]
    words = ["pretrain", *dataset, "--method=depthcontrast", *SMALL[:1], "--epochs=1", "--workers=0", "--queue=8"]
    for said in (["--name=a"], ["--name=b", f"--columns={there}"]):
        sentence = command.refused(*words, *said)
        assert ".bin does not seem to have" in sentence and "set `columns`" in sentence
    if wide in (4, 5):
        assert command("show", *dataset, f"--columns={wide}")[0] == 0


STRANGE = [np.nan, np.inf, 1e6, -3e38]


@pytest.fixture
def strange_points(command):
    """Four points of a training scan and of the validation scan that no lidar measures; the rows."""
    rows = np.array([0, 7, 8, 500])
    for sequence in ("00", "08"):
        path = SEQUENCE.parent / sequence / "velodyne/000000.bin"
        points = np.fromfile(path, np.float32).reshape(-1, 4)
        points[rows, [0, 1, 2, 3]] = STRANGE
        points.tofile(path)
    return rows


@pytest.mark.parametrize("stage", ["linprobe", "fewshot"])
def test_points_that_no_lidar_measures(command, strange_points, stage):
    path = SEQUENCE.parent / "08/labels/000000.label"
    labels = np.fromfile(path, np.uint32)
    labels[strange_points] = 40  # road
    labels.tofile(path)
    words = [stage, *NETWORK, "--dataset=kitti", "--root=world/kitti", "--epochs=2", "--batch=2", "--name=f"]
    code, _, err = command(*words, *(["--pct=100"] if stage == "fewshot" else []), "--max_bad_frames=0")
    assert code == 0, err
    for sequence in ("00", "08"):
        assert err.count(f"points of frame {sequence}_000000 are NaN, infinite or beyond any lidar's range") == 1
    confusion = np.array(scores_of(stage, "f")["details"]["confusion"])
    assert confusion[:, 0].sum() == confusion[9, 0] == 4 and confusion.sum() == len(labels)


def test_a_loaded_network_on_points_that_no_lidar_measures(command, strange_points):
    assert command(*FEWSHOT, "--pictures=0")[0] == 0
    network = slidr.load("output/fewshot/run/model.pt")
    points = np.fromfile(SEQUENCE / "velodyne/000000.bin", np.float32).reshape(-1, 4)
    rest = np.delete(np.arange(len(points)), strange_points)
    for options in ({"features": "backbone"}, {"head": True}):
        out, expected = network(points, **options), network(points[rest], **options)
        assert len(out) == len(points) and torch.equal(out[rest], expected)
        lost = out[strange_points]
        assert (lost == 0).all() if "head" in options else lost.isnan().all()
    assert network(points[strange_points], features="backbone").isnan().all()


@pytest.mark.parametrize("method", ["slidr", "pointcontrast", "depthcontrast"])
def test_pretraining_on_points_that_no_lidar_measures(command, strange_points, method):
    """As if they were not in the file, which is tried with the fastest."""
    if method == "pointcontrast":  # takes two scans of one scene
        for name in ("velodyne/000001.bin", "image_2/000001.png"):
            (SEQUENCE / name).write_bytes((SEQUENCE / name.replace("000001", "000000")).read_bytes())
        (SEQUENCE / "poses.txt").write_text((SEQUENCE / "poses.txt").read_text() * 2)
    words = ["pretrain", "--dataset=kitti", "--root=world/kitti", "--train_split=train", "--val_split=train"]
    words += ["--architecture=res16unet14c", f"--method={method}", "--max_bad_frames=0", *SMALL]
    words += {
        "slidr": ["--teacher=resnet_small", "--teacher_weights=random"],
        "depthcontrast": ["--points=256", "--queue=8"],
    }.get(method, ["--min_distance=0", "--min_matches=1"])
    words = [word for word in words if method == "slidr" or word not in SMALL[1:4]]
    losses = []
    for name in ("strange", "without") if method == "slidr" else ("strange",):
        code, _, err = command(*words, f"--name={name}")
        assert code == 0, err
        assert err.count("beyond any lidar's range") == (2 if name == "strange" else 0)  # training and validation
        losses.append([json.loads(line).get("loss") for line in open(f"output/pretrain/{name}/metrics.jsonl")])
        for path in Path("world/kitti").rglob("*.bin"):
            points = np.fromfile(path, np.float32).reshape(-1, 4)
            points[np.abs(np.nan_to_num(points, nan=np.inf)).max(1) < 1000].tofile(path)
    assert losses[0] == losses[-1] and np.isfinite(losses[0][0])


# Poses and calibrations


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("poses.txt", lambda text: text.replace(text.splitlines()[0], "1 0 0 0 0 1 0 0 0 0 2 0", 1), "line 1 of"),
        ("poses.txt", lambda text: text.replace(text.splitlines()[0], "1 0 0 0 0 1 0 0 0 0 -1 0", 1), "no rotation"),
        ("calib.txt", lambda text: re.sub("Tr: .*", "Tr: 1 1 0 0 0 1 0 0 0 0 1 0", text), "`Tr` of"),
        ("calib.txt", lambda text: re.sub("P2: .*", "P2: " + "0 " * 12, text), "`P2` of"),
        ("calib.txt", lambda text: text + "Tr: 1 0 0 0 0 1 0 0 0 0 1 0\n", "has `Tr` twice, with other numbers"),
    ],
    ids=["scaled", "mirrored", "sheared", "zeros", "twice"],
)
def test_matrices_that_are_none(command, file, change, words):
    (SEQUENCE / file).write_text(change((SEQUENCE / file).read_text()))
    sentence = command.refused(*(PAIRS if file == "poses.txt" else KITTI))
    assert words in sentence and str(SEQUENCE / file) in sentence


def test_a_calibration_that_says_everything_twice(command):
    (SEQUENCE / "calib.txt").write_text((SEQUENCE / "calib.txt").read_text() * 2)
    assert command(*KITTI)[0] == 0


def test_intrinsics_of_zeros(command):
    rewrite("calibrated_sensor", lambda rows: rows[1].update(camera_intrinsic=[[0, 0, 0]] * 3))
    assert "camera_intrinsic is not 3 x 3 finite numbers of a camera" in command.refused("show", "--root=world")


# SemanticKITTI as people have it


def picture_file() -> Path:
    """The one picture of a camera that `show` has drawn."""
    (path,) = Path("output/show/kitti").glob("*/camera_*.png")
    return path


def rename_all(change) -> None:
    for path in sorted(SEQUENCE.glob("*/000000.*")):
        path.rename(path.with_name(change(path.name)))


def as_raw() -> None:
    (SEQUENCE / "image_02").mkdir()
    (SEQUENCE / "image_2").rename(SEQUENCE / "image_02" / "data")


def as_object_benchmark() -> None:
    """Its `Tr_velo_to_cam` leads to a camera that is not rectified yet."""
    text = (SEQUENCE / "calib.txt").read_text()
    tr = np.array(text.split("Tr: ")[1].split(), float).reshape(3, 4)
    turn = Rotation.from_euler("xyz", [0.1, 0.2, 0.3]).as_matrix()
    rows = {"R0_rect": turn, "Tr_velo_to_cam": turn.T @ tr}
    lines = [f"{name}: {' '.join(map(repr, map(float, rows[name].ravel())))}" for name in rows]
    (SEQUENCE / "calib.txt").write_text(text.split("Tr: ")[0] + "\n".join(lines))


def as_links() -> None:
    for name in ("velodyne", "image_2", "labels"):
        (SEQUENCE / name).rename(f"elsewhere_{name}")
        (SEQUENCE / name).symlink_to(Path(f"elsewhere_{name}").absolute())
    SEQUENCE.rename("sequence")
    SEQUENCE.symlink_to(Path("sequence").absolute())


@pytest.mark.parametrize(
    "change",
    [
        lambda: rename_all(lambda name: f"0000{name}"),
        lambda: rename_all(lambda name: name.replace(".bin", ".BIN")),
        as_raw,
        as_object_benchmark,
        as_links,
    ],
    ids=["ten digits", "BIN", "raw", "object", "links"],
)
def test_kitti_as_people_have_it(command, change):
    assert command(*KITTI)[0] == 0
    picture = np.asarray(Image.open(picture_file()))[40:]  # below the title, which has the frame's name
    picture_file().unlink()
    change()
    code, _, err = command(*KITTI)
    assert code == 0, err
    np.testing.assert_array_equal(np.asarray(Image.open(picture_file()))[40:], picture)
    code, _, err = command(*FEWSHOT, "--pictures=0")
    assert code == 0, err
    assert "no labels" not in err


# Images and superpixel maps

MAPS = Path("superpixels/kitti/superpixels_slic_20_6_1")
SEGMENTS = ["--segments=20", "--sigma=1"]


def shown(command, *words: object) -> bytes:
    code, _, err = command(*KITTI, *SEGMENTS, *words)
    assert code == 0, err
    return picture_file().read_bytes()


@pytest.mark.parametrize("spread", [lambda grey: grey * 257, lambda grey: grey * 256 + 255 - grey])
def test_grey_images_of_16_bits_keep_their_upper_eight(command, spread):
    path = SEQUENCE / "image_2/000000.png"
    grey = np.asarray(Image.open(path).convert("L"))
    Image.fromarray(grey).save(path)
    picture = shown(command)
    Image.fromarray(spread(grey.astype(np.uint16))).save(path)
    assert Image.open(path).mode == "I;16" and shown(command) == picture


def test_another_image_format_under_a_jpegs_name(command):
    path = first("*CAM_FRONT__*.jpg")
    Image.open(path).save(path, format="WEBP" if features.check("webp") else "GIF")
    assert f"{path}: it is neither a JPEG nor a PNG" in command.refused(
        "show", "--root=world", "--split=train", *SEGMENTS
    )


def test_a_map_is_of_its_image(command):
    """Two data sets whose images have the same names: the other's maps are never used."""
    picture = shown(command)
    path, (map_,) = SEQUENCE / "image_2/000000.png", MAPS.iterdir()
    image, before = path.read_bytes(), map_.read_bytes()
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert shown(command) != picture and map_.read_bytes() != before
    path.write_bytes(image)
    words = ["superpixels", *KITTI[1:], *SEGMENTS, "--workers=0"]
    code, out, err = command(*words)
    assert code == 0, err
    assert "2 new slic maps" in out and map_.read_bytes() == before  # of this image, and of the other sequence's
    assert "0 new slic maps" in command(*words)[1] and shown(command) == picture


def test_maps_that_others_made(command):
    """They say nothing of their image, and are used; that is said once."""
    words = ["--dataset=kitti", "--root=world/kitti", "--architecture=res16unet14c", *SMALL]
    words += ["--teacher=resnet_small", "--teacher_weights=random", "--epochs=2"]
    assert command("superpixels", *KITTI[1:], *SEGMENTS[:1], "--workers=0")[0] == 0
    for path in MAPS.parent.rglob("*.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(255 - ids).save(path)
        before = path.read_bytes()
    code, _, err = command("pretrain", *words, "--name=others")
    assert code == 0, err
    assert err.count("does not say which image it was made from") == 1 and path.read_bytes() == before


def test_a_map_that_is_a_jpeg(command):
    shown(command)
    (path,) = MAPS.iterdir()
    Image.open(path).save(path, format="JPEG")
    sentence = command.refused(*KITTI, *SEGMENTS)
    assert "JPEG file, which blurs ids" in sentence and "remove it to have it made anew" in sentence


@pytest.mark.parametrize("words", [["--superpixel_shrink=2"], ["--superpixel_shrink=4", "--image_shrink=2"]])
def test_shrunk_superpixels_to_the_end_of_every_stage(command, words):
    code, _, err = command("pretrain", "--root=world", "--name=run", *SMALL, *words)
    assert code == 0, err
    assert Path("output/pretrain/run/report.md").exists() and Path("output/pretrain/run/camera.png").exists()
    assert command("superpixels", "--root=world", "--workers=0", *SEGMENTS, *words[:1])[0] == 0
    assert command("show", "--root=world", *SEGMENTS, *words[:1])[0] == 0
