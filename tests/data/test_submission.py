"""Files for the servers, read back by readers of their own, and by nuScenes' devkit."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from data.datasets import nuscenes, semantic_kitti
from data.datasets.dataset import DataSet
from data.files import InputError
from data.frame import Needs


@dataclass
class FakeReader:
    dataset: DataSet
    ids: list[str]
    scenes: list[str] = field(default_factory=list)


def kitti(sequences: range) -> FakeReader:
    ids = [f"{sequence:02d}_{scan:06d}" for sequence in sequences for scan in (0, 7)]
    return FakeReader(semantic_kitti.RECORD, ids, [name[:2] for name in ids])


def test_kitti_labels_go_back_to_the_raw_ones(tmp_path):
    """The reader knows the official inverse map only."""
    official = [0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]
    reader = kitti(range(11, 22))
    submission = reader.dataset.submission(tmp_path / "out", reader, "test")
    rng = np.random.default_rng(0)
    predictions = {name: rng.integers(1, 20, rng.integers(0, 50)) for name in reader.ids}
    for name, prediction in predictions.items():
        submission.write(name, prediction)
    files = sorted((tmp_path / "out").rglob("*.*"))
    assert [f.relative_to(tmp_path / "out").as_posix() for f in files] == [
        f"sequences/{name[:2]}/predictions/{name[3:]}.label" for name in sorted(reader.ids)
    ]
    for file, name in zip(files, sorted(reader.ids), strict=True):
        raw = file.read_bytes()
        values = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]
        assert values == [official[i] for i in predictions[name]]
    text = submission.describe()
    assert "22 scans" in text and "11 has 2 of 921" in text and "21 has 2 of 2721" in text


def test_kittis_test_sequences_are_all_wanted(tmp_path):
    assert sum(semantic_kitti.TEST_SCANS.values()) == 20351
    with pytest.raises(InputError, match=r"1 of its scenes are not there \(21\)"):
        semantic_kitti.RECORD.submission(tmp_path / "out", kitti(range(11, 21)), "test")
    assert not (tmp_path / "out").exists()


def test_nuscenes_files(tmp_path):
    reader = FakeReader(nuscenes.RECORD, ["a1", "b2"], list(nuscenes.RECORD.splits["mini_val"]))
    submission = reader.dataset.submission(tmp_path, reader, "mini_val")
    predictions = {"a1": np.array([1, 16, 3]), "b2": np.arange(1, 17)}
    for name, prediction in predictions.items():
        submission.write(name, prediction)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == [
        "lidarseg/mini_val/a1_lidarseg.bin",
        "lidarseg/mini_val/b2_lidarseg.bin",
        "mini_val/submission.json",
    ]
    for name, prediction in predictions.items():
        assert list((tmp_path / f"lidarseg/mini_val/{name}_lidarseg.bin").read_bytes()) == prediction.tolist()
    meta = json.loads((tmp_path / "mini_val/submission.json").read_text())["meta"]
    assert meta == dict.fromkeys(meta, False) | {"use_lidar": True}
    assert set(meta) == {"use_camera", "use_lidar", "use_radar", "use_map", "use_external"}
    with pytest.raises(InputError, match="149 of its scenes"):
        nuscenes.RECORD.submission(
            tmp_path / "val", FakeReader(nuscenes.RECORD, ["a"], [nuscenes.RECORD.splits["val"][0]]), "val"
        )


def test_the_devkit_takes_them(tmp_path, shared, monkeypatch):
    """Its own validator, on the two real keyframes, whose scenes are made a split of the devkit's."""
    official = pytest.importorskip("nuscenes.nuscenes")
    utils = pytest.importorskip("nuscenes.eval.lidarseg.utils")
    from nuscenes.eval.lidarseg.validate_submission import validate_submission

    root = shared("realdata", "nuscenes2")
    reader = nuscenes.NuScenes(root, "all")
    submission = reader.dataset.submission(tmp_path / "out", reader, "two")
    rng = np.random.default_rng(0)
    for i, name in enumerate(reader.ids):
        submission.write(name, rng.integers(1, 17, len(reader.read(i, Needs()).points)))
    monkeypatch.setattr(utils, "create_splits_scenes", lambda verbose: {"two": reader.scenes})
    devkit = official.NuScenes("v1.0-mini", str(root), verbose=False)
    validate_submission(devkit, str(tmp_path / "out"), "two")
    Path(tmp_path / "out/lidarseg/two" / f"{reader.ids[0]}_lidarseg.bin").write_bytes(b"\0")
    with pytest.raises(AssertionError):  # so it did look
        validate_submission(devkit, str(tmp_path / "out"), "two")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="no empty folder"):
        semantic_kitti.RECORD.submission(tmp_path, kitti(range(11, 22)), "test")
    with pytest.raises(InputError, match="no empty folder"):
        semantic_kitti.RECORD.submission(tmp_path / "mine", kitti(range(11, 22)), "test")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
