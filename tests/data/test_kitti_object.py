"""KITTI's object benchmark: labels by hand, the built-in world in its layout, results as its server takes them."""

import math
import shutil

import numpy as np
import pytest

from data.boxes import Boxes, Detections, points_in_boxes
from data.datasets import open_reader
from data.datasets.kitti_object import RECORD, KittiObject, read_labels, to_camera
from data.datasets.synthetic import SyntheticWorld, write_kitti_object
from data.files import InputError
from data.frame import Needs
from data.projection import Rigid

ALL = Needs(boxes=True, cameras="all", labels=True)
TINY = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=2, image_scale=0.05, azimuths=512)
AXES = Rigid(np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]), np.zeros(3))  # x forward -> z, y left -> -x, z up -> -y


@pytest.fixture(scope="module")
def _root(tmp_path_factory):
    root = tmp_path_factory.mktemp("object")
    write_kitti_object(root, TINY)
    return root


@pytest.fixture
def root(_root, tmp_path):
    return shutil.copytree(_root, tmp_path / "object")


def label(kind="Car", truncated=0.0, occluded=0, bottom=150.0, size=(1.5, 1.6, 4.0), place=(2, 1, 10), turn=0.0):
    numbers = truncated, occluded, 0, 600, 100, 700, bottom, *size, *place, turn
    return " ".join([kind, *map(str, numbers)])


def read(tmp_path, *lines) -> tuple[Boxes, Boxes]:
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    return read_labels(tmp_path / "a.txt", RECORD, AXES)


def test_a_label_counted_by_hand(tmp_path):
    boxes, ignore = read(tmp_path, label())
    assert boxes.centre == pytest.approx(np.array([[10, -2, -1 + 0.75]])) and len(ignore) == 0
    assert boxes.size == pytest.approx(np.array([[4, 1.6, 1.5]]))
    # a turn of 0 heads along the camera's x, which is to the right: -y of the lidar
    assert boxes.yaw == pytest.approx([-math.pi / 2]) and boxes.label.tolist() == [0]
    ahead, _ = read(tmp_path, label(turn=-math.pi / 2))
    assert ahead.yaw == pytest.approx([0], abs=1e-6)


@pytest.mark.parametrize(
    ("level", "changes"),
    [
        (0, {"bottom": 141.0}),
        (1, {"bottom": 140.0}),  # forty pixels are too few
        (1, {"bottom": 126.0}),
        (3, {"bottom": 125.0}),
        (1, {"occluded": 1}),
        (2, {"occluded": 2}),
        (3, {"occluded": 3}),
        (0, {"truncated": 0.15}),
        (1, {"truncated": 0.3}),
        (2, {"truncated": 0.5}),
        (3, {"truncated": 0.51}),
    ],
)
def test_levels_of_difficulty(tmp_path, level, changes):
    assert read(tmp_path, label(**changes))[0].difficulty.tolist() == [level]


def test_neighbours_are_ignored_and_other_types_left_out(tmp_path):
    gone = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
    kinds = ("Van", "Person_sitting", "Tram", "Misc", "Truck", "Cyclist", "Pedestrian", "unheard_of")
    boxes, ignore = read(tmp_path, *(label(kind) for kind in kinds), gone, "")
    assert [RECORD.boxes[i] for i in boxes.label] == ["cyclist", "pedestrian"]
    assert [RECORD.boxes[i] for i in ignore.label] == ["car", "pedestrian"]
    assert [len(part) for part in read(tmp_path, gone)] == [0, 0]


WRONG = {"turn": math.nan}, {"size": (0, 1, 1)}, {"size": (1, -1, 1)}, {"place": (0, 0, 1e39)}


@pytest.mark.parametrize("line", ["Car 0 0", "Car " + "x " * 14, *(label(**wrong) for wrong in WRONG)])
def test_a_broken_line_is_named(tmp_path, line):
    with pytest.raises(InputError, match=r"line 2 of .*a.txt .* is no label, which has a type and 14 finite numbers"):
        read(tmp_path, label(), line)


def test_labels_go_back_to_the_camera(tmp_path):
    rng = np.random.default_rng(0)
    places, turns = rng.uniform(-10, 30, (20, 3)), rng.uniform(-3.1, 3.1, 20)
    boxes, _ = read(tmp_path, *(label(place=p, turn=t) for p, t in zip(places, turns, strict=True)))
    location, turn = to_camera(boxes, AXES)
    assert location == pytest.approx(places, abs=1e-4) and turn == pytest.approx(turns, abs=1e-4)


def test_the_built_in_world_reads_back(root):
    train, val = (open_reader("kitti_object", root, split) for split in ("train", "val"))
    assert train.ids == ["000000", "000001"] and val.ids == ["000002", "000003"]
    assert len(KittiObject(root, "all")) == len(KittiObject(root, "trainval")) == 4
    (root / "splits.json").write_text('{"one": ["000003"]}')
    assert KittiObject(root, "one").ids == ["000003"]
    for reader in (train, val):
        for i in range(2):
            frame = reader.read(i, ALL)
            assert frame.labels is None and len(frame.pairs) == len(frame.points) > 100  # in the camera's view alone
            assert len(frame.boxes) > 2 and (frame.boxes.points > 0).mean() > 0.8
            assert frame.points[:, 0].min() > 0 and set(frame.boxes.difficulty) <= {0, 1, 2, 3}
            left, top, right, bottom = reader.image_boxes(frame.id, frame.boxes).T
            box = points_in_boxes(frame.points, frame.boxes)[frame.pairs.point]
            of, row, column = box[box >= 0], frame.pairs.row[box >= 0], frame.pairs.column[box >= 0]
            assert ((column >= left[of] - 1) & (column <= right[of] + 1)).all() and len(of) > 10
            assert ((row >= top[of] - 1) & (row <= bottom[of] + 1)).all()


def test_an_object_is_where_the_label_of_the_image_says(root):
    """The rectangle of a label, written from the world, is that of the box that is read."""
    reader = KittiObject(root, "all")
    frame = reader.read(2, ALL)
    lines = [line.split() for line in (root / "training/label_2/000002.txt").read_text().splitlines()]
    written = np.array([line[4:8] for line in lines if line[0].lower() in RECORD.boxes], float)
    assert reader.image_boxes(frame.id, frame.boxes) == pytest.approx(written, abs=0.5)


def test_what_is_not_there_is_said(root):
    (root / "ImageSets" / "train.txt").unlink()
    missing = r"no list of the split `train` .*3712 frames.* or choose one of all, trainval, val"
    with pytest.raises(InputError, match=missing):
        KittiObject(root, "train")
    with pytest.raises(InputError, match="testing/velodyne has no scan .* of the split `test`"):
        KittiObject(root, "test")
    reader = KittiObject(root, "val")
    with pytest.raises(InputError, match="single frames without poses"):
        reader.read(0, Needs(pose=True))
    (root / "training/label_2/000002.txt").unlink()
    with pytest.raises(InputError, match="000002.txt"):
        reader.read(0, ALL)
    assert reader.read(0, Needs()).boxes is None  # nothing else is opened


def test_another_data_set_is_left_alone(root, tmp_path):
    write_kitti_object(root, TINY)
    with pytest.raises(InputError, match="other settings"):
        write_kitti_object(root, SyntheticWorld())
    (tmp_path / "other" / "training").mkdir(parents=True)
    with pytest.raises(InputError, match="holds another data set"):
        write_kitti_object(tmp_path / "other", TINY)


def test_results_read_back_as_labels(root, tmp_path):
    shutil.copytree(root / "training", root / "testing")
    reader = KittiObject(root, "test")
    assert reader.ids[0] == "test_000000" and reader.read(0, ALL).boxes is None
    truth = KittiObject(root, "all").read(0, ALL).boxes
    submission = RECORD.detection_submission(tmp_path / "out", reader, "test")
    scores = np.linspace(0.9, 0.1, len(truth)).astype(np.float32)
    submission.write("test_000000", Detections(truth, scores))
    submission.write("test_000001", Detections(Boxes.empty(), np.zeros(0, np.float32)))
    assert "2 frames in" in submission.finish() and "test has 7518" in submission.finish()
    assert (tmp_path / "out" / "000001.txt").read_text() == ""
    lines = (tmp_path / "out" / "000000.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [16] * len(truth)
    assert [float(line.split()[15]) for line in lines] == pytest.approx(scores, abs=1e-4)
    calibration = reader._calibration(0).lidar_to_camera()
    again, _ = read_labels(tmp_path / "out" / "000000.txt", RECORD, calibration)
    assert again.centre == pytest.approx(truth.centre, abs=1e-3) and again.size == pytest.approx(truth.size, abs=1e-3)
    assert np.cos(again.yaw - truth.yaw) == pytest.approx(1, abs=1e-5) and again.label.tolist() == truth.label.tolist()
    labels = (root / "training/label_2/000000.txt").read_text().splitlines()
    written = [line.split()[3:8] for line in labels if line.split()[0].lower() in RECORD.boxes]
    rectangles = np.array([line.split()[3:8] for line in lines], float)
    assert rectangles == pytest.approx(np.array(written, float), abs=0.5)  # alpha, and the rectangle in the image
