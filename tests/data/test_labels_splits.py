"""Label maps and scene lists against the devkit, the golden files and the paper's tables."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.disk import InputError
from data.labels import CLASSES, COLOURS, to_raw_ids, to_train_ids
from data.semantic_kitti import SemanticKitti
from data.splits import NUSCENES, SEMANTIC_KITTI

RAW_NUSCENES = range(32)
RAW_KITTI = (
    *(0, 1, 10, 11, 13, 15, 16, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 52, 60, 70, 71, 72, 80, 81, 99),
    *range(252, 260),
)


def one(raw, dataset, dtype):
    return int(to_train_ids(np.array([raw], dtype), dataset, "a.label")[0])


def test_nuscenes_map_is_the_devkits(shared):
    nuscenes = pytest.importorskip("nuscenes.nuscenes")
    mapper = pytest.importorskip("nuscenes.eval.lidarseg.utils").LidarsegClassMapper(
        nuscenes.NuScenes("v1.0-mini", str(shared("realdata", "nuscenes2")), verbose=False)
    )
    assert {raw: one(raw, "nuscenes", np.uint8) for raw in RAW_NUSCENES} == mapper.fine_idx_2_coarse_idx_mapping
    names = [
        name.replace("_", " ")
        for name, _ in sorted(mapper.coarse_name_2_coarse_idx_mapping.items(), key=lambda x: x[1])
    ]
    assert list(CLASSES["nuscenes"][1:]) == names[1:]


def test_kitti_map_gives_the_golden_histograms(shared):
    golden = json.loads(shared("golden", "step", "E2_kitti_all_frames_histograms.json").read_text())
    reader = SemanticKitti(shared("realdata", "semantickitti33"), "all")
    assert len(reader) == len(golden) == 33
    for i, frame_id in enumerate(reader.ids):
        expected = golden[frame_id.replace("_", "/velodyne/") + ".bin"]
        labels = reader.read(i, images=False).labels
        assert len(labels) == expected["n_points"]
        assert np.bincount(labels, minlength=20).tolist() == expected["hist_point"], frame_id


def test_kitti_labels_that_the_frames_lack():
    # Motorcyclists, trolleys and the like: by the paper's table
    expected = {
        255: 8,
        32: 8,
        256: 5,
        257: 5,
        259: 5,
        13: 5,
        16: 5,
        258: 4,
        254: 6,
        253: 7,
        49: 12,
        99: 0,
        52: 0,
        60: 9,
    }
    assert {raw: one(raw, "semantic_kitti", np.uint32) for raw in expected} == expected


@pytest.mark.parametrize(
    "dataset, raw, dtype", [("nuscenes", RAW_NUSCENES, "u1"), ("semantic_kitti", RAW_KITTI, "<u4")]
)
def test_every_raw_label_has_one_class_and_there_is_a_way_back(dataset, raw, dtype):
    raw = np.array(raw, dtype)
    train_ids = to_train_ids(raw, dataset, "a.label")
    assert train_ids.dtype == np.uint8
    classes = len(CLASSES[dataset])
    assert set(train_ids.tolist()) == set(range(classes))
    back = to_raw_ids(np.arange(classes, dtype=np.uint8), dataset)
    np.testing.assert_array_equal(to_train_ids(back.astype(dtype), dataset, "a.label"), np.arange(classes))
    assert to_train_ids(raw[:0], dataset, "a.label").shape == (0,)


def test_kitti_way_back_is_the_official_one():
    official = [0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]
    assert to_raw_ids(np.arange(20), "semantic_kitti").tolist() == official


@settings(deadline=None)
@given(st.sampled_from(RAW_KITTI), st.integers(0, 2**16 - 1))
def test_kitti_instances_are_left_out(raw, instance):
    assert one(instance << 16 | raw, "semantic_kitti", np.uint32) == one(raw, "semantic_kitti", np.uint32)


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1).filter(lambda raw: raw not in RAW_KITTI), st.integers(1, 5))
def test_unknown_kitti_labels_are_named(raw, count):
    labels = np.array([10] * 7 + [raw] * count, np.uint32)
    with pytest.raises(InputError, match=rf"^00/7.label has the label {raw}, .*\({count} points"):
        to_train_ids(labels, "semantic_kitti", "00/7.label")


@settings(deadline=None)
@given(st.integers(32, 255))
def test_unknown_nuscenes_labels_are_named(raw):
    with pytest.raises(InputError, match=f"has the label {raw}, which nuscenes does not define"):
        one(raw, "nuscenes", np.uint8)


@pytest.mark.parametrize("dataset, classes", [("nuscenes", 17), ("semantic_kitti", 20)])
def test_one_colour_a_class(dataset, classes):
    assert len(CLASSES[dataset]) == len(set(CLASSES[dataset])) == classes
    assert CLASSES[dataset][0] == "ignored"
    assert COLOURS[dataset].shape == (classes, 3) and COLOURS[dataset].dtype == np.uint8
    assert len(np.unique(COLOURS[dataset], axis=0)) == classes


def test_nuscenes_scenes_are_the_devkits():
    official = pytest.importorskip("nuscenes.utils.splits").create_splits_scenes()
    for name in ("train", "val", "test", "mini_train", "mini_val"):
        assert list(NUSCENES[name]) == official[name], name


def test_mini_val_is_the_published_codes(shared):
    golden = shared("golden", "step", "mini_val_scenes.txt").read_text().split()
    assert list(NUSCENES["pretrain_val"]) == golden


def test_pretraining_scenes_are_train_in_two_parts():
    assert len(NUSCENES["pretrain"]) == 600 and len(NUSCENES["pretrain_val"]) == 100
    assert sorted(NUSCENES["pretrain"] + NUSCENES["pretrain_val"]) == list(NUSCENES["train"])


def test_kitti_sequences():
    train, val, test = (SEMANTIC_KITTI[name] for name in ("train", "val", "test"))
    assert train == ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10") and val == ("08",)
    assert test[0] == "11" and test[-1] == "21" and len(test) == 11
    assert sorted(train + val + test) == list(SEMANTIC_KITTI["all"])
