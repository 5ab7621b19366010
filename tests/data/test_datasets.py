"""Records: label maps and scene lists against the devkit, golden files and the paper; data sets from outside."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datasets import DATASETS, find_dataset, kitti_object, nuscenes, open_reader, semantic_kitti, synthetic
from data.datasets.dataset import DataSet, ReadOptions
from data.datasets.semantic_kitti import SemanticKitti
from data.files import InputError
from data.frame import Needs
from data.subsets import select

NUSCENES, KITTI = nuscenes.RECORD.splits, semantic_kitti.RECORD.splits

RAW_NUSCENES = range(32)
RAW_KITTI = (
    *(0, 1, 10, 11, 13, 15, 16, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 52, 60, 70, 71, 72, 80, 81, 99),
    *range(252, 260),
)


def one(raw: int, record: DataSet, dtype) -> int:
    return int(record.to_train_ids(np.array([raw], dtype), "a.label")[0])


def test_nuscenes_map_is_the_devkits(shared):
    official = pytest.importorskip("nuscenes.nuscenes")
    mapper = pytest.importorskip("nuscenes.eval.lidarseg.utils").LidarsegClassMapper(
        official.NuScenes("v1.0-mini", str(shared("realdata", "nuscenes2")), verbose=False)
    )
    assert {raw: one(raw, nuscenes.RECORD, np.uint8) for raw in RAW_NUSCENES} == mapper.fine_idx_2_coarse_idx_mapping
    names = [
        name.replace("_", " ")
        for name, _ in sorted(mapper.coarse_name_2_coarse_idx_mapping.items(), key=lambda x: x[1])
    ]
    assert list(nuscenes.RECORD.classes[1:]) == names[1:]


def test_kitti_map_gives_the_golden_histograms(shared):
    golden = json.loads(shared("golden", "step", "E2_kitti_all_frames_histograms.json").read_text())
    reader = SemanticKitti(shared("realdata", "semantickitti33"), "all")
    assert len(reader) == len(golden) == 33
    for i, frame_id in enumerate(reader.ids):
        expected = golden[frame_id.replace("_", "/velodyne/") + ".bin"]
        labels = reader.read(i, Needs(labels=True)).labels
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
    assert {raw: one(raw, semantic_kitti.RECORD, np.uint32) for raw in expected} == expected


@pytest.mark.parametrize(
    "record, raw, dtype",
    [
        (nuscenes.RECORD, RAW_NUSCENES, "u1"),
        (synthetic.RECORD, RAW_NUSCENES, "u1"),
        (semantic_kitti.RECORD, RAW_KITTI, "<u4"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_raw_label_has_one_class_and_there_is_a_way_back(record, raw, dtype):
    raw = np.array(raw, dtype)
    train_ids = record.to_train_ids(raw, "a.label")
    assert train_ids.dtype == np.uint8
    classes = len(record.classes)
    assert set(train_ids.tolist()) == set(range(classes))
    back = record.to_raw_ids(np.arange(classes, dtype=np.uint8))
    np.testing.assert_array_equal(record.to_train_ids(back.astype(dtype), "a.label"), np.arange(classes))
    assert record.to_train_ids(raw[:0], "a.label").shape == (0,)


def test_kitti_way_back_is_the_official_one():
    official = [0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]
    assert semantic_kitti.RECORD.to_raw_ids(np.arange(20)).tolist() == official


@settings(deadline=None)
@given(st.sampled_from(RAW_KITTI), st.integers(0, 2**16 - 1))
def test_kitti_instances_are_left_out(raw, instance):
    assert one(instance << 16 | raw, semantic_kitti.RECORD, np.uint32) == one(raw, semantic_kitti.RECORD, np.uint32)


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1).filter(lambda raw: raw not in RAW_KITTI), st.integers(1, 5))
def test_unknown_kitti_labels_are_named(raw, count):
    labels = np.array([10] * 7 + [raw] * count, np.uint32)
    with pytest.raises(InputError, match=rf"^00/7.label has the label {raw}, .*\({count} points"):
        semantic_kitti.RECORD.to_train_ids(labels, "00/7.label")


@settings(deadline=None)
@given(st.integers(32, 255))
def test_unknown_nuscenes_labels_are_named(raw):
    with pytest.raises(InputError, match=f"has the label {raw}, which nuscenes does not define"):
        one(raw, nuscenes.RECORD, np.uint8)


@pytest.mark.parametrize(
    "record, classes", [(nuscenes.RECORD, 17), (synthetic.RECORD, 17), (semantic_kitti.RECORD, 20)]
)
def test_one_colour_a_class(record, classes):
    assert len(record.classes) == len(set(record.classes)) == classes
    assert record.classes[0] == "ignored"
    assert record.colours.shape == (classes, 3) and record.colours.dtype == np.uint8
    assert len(np.unique(record.colours, axis=0)) == classes


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
    train, val, test = (KITTI[name] for name in ("train", "val", "test"))
    assert train == ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10") and val == ("08",)
    assert test[0] == "11" and test[-1] == "21" and len(test) == 11
    assert sorted(train + val + test) == list(KITTI["all"])


# Records


MODULES = synthetic, nuscenes, semantic_kitti, kitti_object
RECORDS = {module.RECORD.name: module.RECORD for module in MODULES}
by_name = pytest.mark.parametrize("name", list(RECORDS))


@by_name
def test_a_record_is_found_by_its_name_and_goes_to_other_processes(name):
    assert list(DATASETS) == list(RECORDS)
    record = find_dataset(name)
    assert record is RECORDS[name] and find_dataset(DATASETS[name]) is record
    again = pickle.loads(pickle.dumps(record))
    assert (again.name, again.table, again.splits, again.open) == (name, record.table, record.splits, record.open)


@by_name
def test_a_record_says_how_few_labels_are_counted_and_where_its_data_is(name):
    record = RECORDS[name]
    assert record.few_labels == ("frames" if "kitti" in name else "scenes")  # as published
    assert record.root.parts[0] == "datasets" and not record.root.is_absolute()
    assert record.how_to_get.split()[0] in ("get", "write")
    assert (record.submission is not None) == (name != "kitti_object")
    assert (record.detection_submission is not None) == bool(record.boxes) == (name != "kitti")
    assert record.box_colours.shape == (len(record.boxes), 3)


@by_name
@given(data=st.data())
def test_labels_survive_the_way_to_the_server_and_back(name, data):
    record = RECORDS[name]
    train_ids = data.draw(st.lists(st.integers(0, len(record.classes) - 1), max_size=50))
    raw = record.to_raw_ids(np.array(train_ids, int))
    assert raw.dtype == np.uint16
    stored = raw.astype("<u4" if record.raw_bits > 0xFF else "u1")
    np.testing.assert_array_equal(record.to_train_ids(stored, "a.label"), train_ids)


@by_name
@given(raw=st.integers(0, 2**32 - 1))
def test_every_raw_label_has_a_class_or_is_named(name, raw):
    record = RECORDS[name]
    stored = np.array([raw], np.uint32)
    known = {label: i for i, (_, _, labels) in enumerate(record.table) for label in labels}
    label = raw & record.raw_bits
    if label in known:
        assert record.to_train_ids(stored, "a.label").tolist() == [known[label]]
    else:
        with pytest.raises(InputError, match=f"a.label has the label {label}, which {name} does not define"):
            record.to_train_ids(stored, "a.label")


@by_name
def test_no_raw_label_has_two_classes_and_no_scene_is_twice_in_a_split(name):
    record = RECORDS[name]
    labels = [label for _, _, raw in record.table for label in raw]
    assert len(labels) == len(set(labels))
    for scenes in record.splits.values():
        assert len(scenes) == len(set(scenes))
    if {"train", "val"} <= set(record.splits):
        assert not set(record.splits["train"]) & set(record.splits["val"])


def test_the_built_in_world_has_the_classes_of_nuscenes():
    assert synthetic.RECORD.table == nuscenes.RECORD.table and synthetic.RECORD.name != nuscenes.RECORD.name


# From outside the package


TOY = """
from pathlib import Path

import numpy as np

from data.datasets.dataset import DataSet
from data.frame import Frame


class Toy:
    intensity_scale, intensity_offset, ids, scenes = 1.0, 0.0, ["a", "b"], ["s", "s"]

    def __init__(self, root, split, options):
        self.dataset, self.columns = RECORD, options.columns

    def __len__(self):
        return 2

    def read(self, index, needs, rng=None):
        return Frame(self.ids[index], np.zeros((3, 4), np.float32))

    def image_files(self):
        return []


RECORD = DataSet("toy", (("ignored", (0, 0, 0), (0,)),), {}, Toy, Path("toys"), "draw it")
NOTHING = 3
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A module in the working folder, from which it is imported; the name of the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"toy_{tmp_path.name}"
    Path(f"{name}.py").write_text(TOY)
    return name


def test_a_data_set_from_outside(toy):
    Path("elsewhere").mkdir()
    reader = open_reader(f"{toy}:RECORD", Path("elsewhere"), "any", ReadOptions(columns=6))
    assert reader.dataset.name == "toy" and reader.columns == 6
    assert reader.read(1, Needs()).id == "b"
    with pytest.raises(InputError, match="no toy data set at .*toys: draw it and link it there or pass --root FOLDER"):
        open_reader(f"{toy}:RECORD", None, "any")
    part = select(reader, [1])
    assert (part.dataset, part.ids, part.read(0, Needs()).id) == (reader.dataset, ["b"], "b")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "toys",
            "there is no data set `toys`; choose one of synthetic, nuscenes, kitti, kitti_object, or name your own",
        ),
        ("{toy}:MISSING", "the data set `.*:MISSING` cannot be imported .*MISSING"),
        ("{toy}:", "cannot be imported"),
        (":RECORD", "cannot be imported"),
        ("no_such_module:RECORD", "cannot be imported .No module named 'no_such_module'"),
        ("{toy}:NOTHING", "`.*:NOTHING` is no data.datasets.dataset.DataSet record"),
    ],
)
def test_a_data_set_that_cannot_be_found(toy, name, words):
    with pytest.raises(InputError, match=words):
        find_dataset(name.format(toy=toy))


@pytest.mark.parametrize("columns", [-1, 0, 3])
def test_too_few_columns(columns):
    with pytest.raises(InputError, match=f"cannot have {columns} columns; x, y, z and intensity"):
        ReadOptions(columns=columns)
