"""nuScenes' annotations as boxes: against the devkit, the tables' own counts, and the built-in world's objects."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data.boxes import Boxes, Detections, corners, points_in_boxes
from data.datasets import nuscenes, synthetic
from data.datasets.nuscenes import BOXES, NuScenes
from data.datasets.synthetic import VERSION, SyntheticWorld, write_nuscenes
from data.files import InputError
from data.frame import Needs
from data.subsets import select

NEEDS = Needs(boxes=True, labels=True)
TABLE = f"{VERSION}/sample_annotation.json"


@pytest.fixture
def real(shared, tmp_path, monkeypatch) -> NuScenes:
    monkeypatch.chdir(tmp_path)  # the index goes there
    return NuScenes(shared("realdata", "nuscenes2"), "all")


def test_boxes_are_the_devkits_and_hold_the_points_that_the_tables_count(real, shared):
    official = pytest.importorskip("nuscenes.nuscenes")
    from nuscenes.eval.detection.utils import category_to_detection_name

    devkit = official.NuScenes("v1.0-mini", str(shared("realdata", "nuscenes2")), verbose=False)
    differences = []
    for index, token in enumerate(real.ids):
        frame = real.read(index, NEEDS)
        _, expected, _ = devkit.get_sample_data(token)  # in the lidar's frame
        rows = []
        for box in expected:
            record = devkit.get("sample_annotation", box.token)
            name = category_to_detection_name(box.name)
            if name is not None and record["num_lidar_pts"] + record["num_radar_pts"] > 0:
                rows.append((name.replace("_", " "), box, record["num_lidar_pts"]))
        assert len(rows) == len(frame.boxes) > 20
        for i, (name, box, points) in enumerate(rows):
            assert BOXES[frame.boxes.label[i]] == name
            assert frame.boxes.centre[i] == pytest.approx(box.center, abs=1e-3)
            assert frame.boxes.size[i] == pytest.approx(box.wlh[[1, 0, 2]], abs=1e-5)
            heading = box.orientation.rotation_matrix[:2, 0]
            turned = heading @ (math.cos(frame.boxes.yaw[i]), math.sin(frame.boxes.yaw[i])) / np.linalg.norm(heading)
            assert turned == pytest.approx(1, abs=1e-5)
            ours, theirs = corners(frame.boxes.select([i]))[0], box.corners().T
            gap = np.linalg.norm(ours[:, None] - theirs, axis=2).min(1).max()
            assert gap < 0.25  # ours stands upright in the lidar's frame, which leans by a degree or two
            differences.append(abs(frame.boxes.points[i] - points))
    assert np.mean(np.array(differences) <= 1) > 0.85 and np.mean(differences) < 1


def test_racks_are_ignored_for_both_kinds_of_cycles(real, monkeypatch):
    names, rows = real._boxes[0]
    before = real.read(0, NEEDS)
    renamed = ["static_object.bicycle_rack" if name == "vehicle.car" else name for name in names]
    monkeypatch.setattr(real, "_boxes", [(renamed, rows)])
    after = real.read(0, NEEDS)
    cars = (before.boxes.label == BOXES.index("car")).sum()
    assert cars and len(before.ignore) == 0 and not (after.boxes.label == BOXES.index("car")).any()
    assert [BOXES[i] for i in after.ignore.label] == ["bicycle", "motorcycle"] * cars


def test_boxes_are_read_only_where_they_are_asked_for(small_world):
    reader = NuScenes(small_world / "nuscenes", "all")
    frame = reader.read(0, Needs())
    assert frame.boxes is None and frame.ignore is None
    chosen = select(reader, [1]).read(0, NEEDS)
    assert len(chosen.boxes) and chosen.boxes.centre.tolist() == reader.read(1, NEEDS).boxes.centre.tolist()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": [1.0, 0.0, 1.0]}, "{token} is broken: it has no three sizes above 0 .*download the tables again"),
        ({"size": [1.0, -2.0, 1.0]}, "the annotation {token} is broken: it has no three sizes above 0"),
        ({"size": [1.0, 2.0]}, "the annotation {token} is broken: it has no three sizes above 0"),
        ({"rotation": [math.nan, 0, 0, 0]}, "{token} has no unit quaternion"),
        ({"rotation": [0, 0, 0, 0]}, "{token} has no unit quaternion"),
        ({"translation": [0, 0, math.inf]}, "{token} has no unit quaternion and translation"),
        ({"translation": [0, 1e39, 0]}, "the annotation {token} is broken: it is a kilometre away, or as large"),
        ({"size": "large"}, "the annotation {token} is broken: .*'large'"),
        ({"size": None}, "the annotation {token} is broken: it has no three sizes"),
        ({"rotation": None}, "the annotations cannot be read: .*NoneType"),
        ({"instance_token": "gone"}, "the annotations cannot be read: .*gone"),
    ],
)
def test_a_broken_annotation_is_named(small_world, change, sentence):
    file = small_world / "nuscenes" / TABLE
    rows = json.loads(file.read_text())
    rows[0] |= change
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=sentence.format(token=rows[0]["token"])):
        reader = NuScenes(small_world / "nuscenes", "all")
        assert reader.read(0, Needs()).boxes is None  # who needs no boxes reads on
        for i in range(len(reader)):
            reader.read(i, NEEDS)


def test_a_truncated_table_matters_only_where_boxes_are_asked_for(small_world):
    file = small_world / "nuscenes" / TABLE
    file.write_bytes(file.read_bytes()[:1000])
    reader = NuScenes(small_world / "nuscenes", "all")
    assert len(reader.read(0, Needs(labels=True)).labels)
    with pytest.raises(InputError, match="the annotations cannot be read: .*sample_annotation.json"):
        reader.read(0, NEEDS)


def test_frames_without_objects_and_tables_without_annotations(small_world):
    root = small_world / "nuscenes"
    rows = json.loads((root / TABLE).read_text())
    first = json.loads((root / VERSION / "sample.json").read_text())[0]["token"]
    rows = [row | {"num_lidar_pts": 0} if row["sample_token"] == first else row for row in rows]
    (root / TABLE).write_text(json.dumps(rows))
    lengths = [len(NuScenes(root, "all").read(i, NEEDS).boxes) for i in range(2)]
    assert lengths[0] == 0 < lengths[1]  # no lidar or radar point: left out
    (root / TABLE).write_text("[]")
    assert NuScenes(root, "all").read(0, NEEDS).boxes is None
    (root / TABLE).unlink()
    assert NuScenes(root, "all").read(0, NEEDS).boxes is None


def test_the_worlds_objects_hold_the_points_that_have_their_class(tmp_path):
    world = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=1, image_scale=0.02, azimuths=512)
    write_nuscenes(tmp_path, world)
    reader = NuScenes(tmp_path, "all", dataset=synthetic.RECORD, index_cache=tmp_path / "index.npz")
    rows, labelled, boxed, agreed = json.loads((tmp_path / TABLE).read_text()), 0, 0, 0
    for i in range(2):
        frame = reader.read(i, NEEDS)
        box, classes = points_in_boxes(frame.points, frame.boxes), np.array(reader.dataset.classes)[frame.labels]
        inside, of_box = box >= 0, np.array(BOXES)[frame.boxes.label[box]]
        of_objects = np.isin(classes, BOXES)
        labelled, boxed = labelled + of_objects.sum(), boxed + (inside & of_objects).sum()
        agreed += (inside & (of_box == classes)).sum()
        counts = [row["num_lidar_pts"] for row in rows if row["sample_token"] == reader.samples[i]]
        assert np.abs(frame.boxes.points - counts).sum() < 0.1 * sum(counts)  # the lidar leans by a degree
        assert {BOXES[label] for label in frame.boxes.label} >= {"car", "truck", "bus", "pedestrian"}
    assert labelled > 3000 and boxed > 0.97 * labelled and agreed > 0.85 * labelled  # objects may overlap


def test_a_world_of_an_earlier_version_gets_its_boxes(small_world, capsys):
    root = small_world / "nuscenes"
    before = {name: (root / VERSION / f"{name}.json").read_text() for name in ("instance", "sample_annotation")}
    for name in before:
        (root / VERSION / f"{name}.json").write_text("[]")
    scan = next(root.rglob("*.pcd.bin"))
    written = scan.stat().st_mtime_ns
    synthetic.RECORD.prepare(small_world)
    assert "has no boxes yet: its tables are written again" in capsys.readouterr().err
    assert before == {name: (root / VERSION / f"{name}.json").read_text() for name in before}
    assert scan.stat().st_mtime_ns == written
    synthetic.RECORD.prepare(small_world)
    assert not capsys.readouterr().err


def test_the_devkit_scores_our_file_as_we_do(small_world, tmp_path, monkeypatch):
    """Its whole evaluation of the world, written to a file and read back, with the metric of `slidr.tasks`."""
    official = pytest.importorskip("nuscenes.nuscenes")
    evaluate = pytest.importorskip("nuscenes.eval.detection.evaluate")
    from nuscenes.eval.common import loaders
    from nuscenes.eval.detection.config import config_factory

    from slidr.tasks.detection.metrics import NuScenesScores

    root = small_world / "nuscenes"
    reader = NuScenes(root, "val", dataset=synthetic.RECORD)
    submission = reader.dataset.detection_submission(tmp_path / "out", reader, "val")
    rng, metric = np.random.default_rng(0), NuScenesScores(BOXES)
    for i, name in enumerate(reader.ids):
        frame = reader.read(i, NEEDS)
        boxes = frame.boxes.select(np.repeat(np.arange(len(frame.boxes)), 2))
        centre = boxes.centre + rng.normal(0, 0.5, boxes.centre.shape)
        boxes = Boxes.of(centre, boxes.size * 1.1, boxes.yaw, boxes.label)
        found = Detections(boxes, rng.random(len(boxes)).astype(np.float32))
        submission.write(name, found)
        metric.add(name, found, frame.boxes, frame.ignore)
    results = tmp_path / "out" / "results_nusc.json"
    assert submission.finish() == f"{len(reader)} keyframes in {results}"
    monkeypatch.setattr(loaders, "create_splits_scenes", lambda: {"val": reader.scenes})
    devkit = official.NuScenes(VERSION, str(root), verbose=False)
    devkit.version = "v1.0-trainval"  # which `val` belongs to
    config = config_factory("detection_cvpr_2019")
    theirs = evaluate.DetectionEval(devkit, config, str(results), "val", str(tmp_path / "eval"), verbose=False)
    theirs, ours = theirs.evaluate()[0], metric.scores()
    assert ours.value == pytest.approx(100 * theirs.mean_ap, abs=0.2) and ours.value > 5
    for error, key in (("ATE", "trans_err"), ("ASE", "scale_err"), ("AOE", "orient_err")):
        assert ours.details["errors"][error] == pytest.approx(theirs.tp_errors[key], abs=0.01)


def test_a_file_for_the_server_has_the_surest_boxes_and_says_what_is_missing(real, tmp_path):
    submission = nuscenes.NuScenesDetectionSubmission(tmp_path / "out", real, "two")
    rng = np.random.default_rng(0)
    boxes = Boxes.of(rng.uniform(-50, 50, (600, 3)), np.ones((600, 3)), np.zeros(600), np.full(600, 8))
    submission.write(real.ids[1], Detections(boxes, np.linspace(0, 1, 600, dtype=np.float32)))
    assert submission.finish().endswith("incomplete, the server will refuse it: 1 are missing")
    content = json.loads(Path(tmp_path / "out" / "results_nusc.json").read_text())
    (rows,) = content["results"].values()
    assert len(rows) == 500 and rows[0]["detection_score"] == 1 and rows[0]["detection_name"] == "traffic_cone"
    assert content["meta"]["use_lidar"] and not content["meta"]["use_camera"]
