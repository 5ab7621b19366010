"""The nuScenes reader's splits, its index of the tables, and what is wrong with tables and files."""

import json
import os

import numpy as np
import pytest

from data.datasets.dataset import ReadOptions
from data.datasets.nuscenes import NuScenes
from data.files import InputError
from tests.data.test_nuscenes import ALL, lidar, make_tables, write_tables, write_world


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A root with scene-0061 (train, mini_train), two keyframes out of order, and scene-0103 (val, mini_val), one."""
    monkeypatch.chdir(tmp_path)  # the index goes there, not to the repository
    write_world(tmp_path / "world", make_tables({"scene-0061": [30, 20], "scene-0103": [10]}))
    return tmp_path / "world"


# Splits and versions


def test_official_splits(world):
    frames = {
        name: len(NuScenes(world, name)) for name in ("train", "mini_train", "pretrain", "val", "mini_val", "all")
    }
    assert frames == {"train": 2, "mini_train": 2, "pretrain": 2, "val": 1, "mini_val": 1, "all": 3}


def test_own_splits_go_first(world):
    (world / "v1.0-mini" / "splits.json").write_text(json.dumps({"mine": ["scene-0103"], "val": ["scene-0061"]}))
    assert NuScenes(world, "mine").scenes == ["scene-0103"]
    assert NuScenes(world, "val").scenes == ["scene-0061"] * 2
    assert NuScenes(world, "train").scenes == ["scene-0061"] * 2


def test_a_misspelt_scene_of_an_own_split(world):
    own = {"mine": ["scene-0103", "scene-9O02"], "other": ["scene-0103"]}
    (world / "v1.0-mini" / "splits.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match="splits.json names scene-9O02 in its split `mine`, and .* no such scene"):
        NuScenes(world, "mine")
    assert len(NuScenes(world, "other")) == 1


def test_byte_order_marks(world):
    (world / "v1.0-mini" / "splits.json").write_text('{"mine": ["scene-0103"]}')
    for file in (world / "v1.0-mini").glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(NuScenes(world, "mine").read(0, ALL).cameras) == 6


@pytest.mark.parametrize("split", ["pretrain_val", "test", "nonsense"])
def test_a_split_without_scenes(world, split):
    with pytest.raises(InputError, match=rf"no scene of the split `{split}`.*train \(1 scenes\).*val \(1 scenes\)"):
        NuScenes(world, split)


def test_the_version_that_holds_the_split_is_found(world):
    write_tables(world, make_tables({"scene-0061": [1], "scene-0103": [2], "scene-0001": [3]}), "v1.0-trainval")
    write_tables(world, make_tables({"scene-0077": [4]}), "v1.0-test")
    assert NuScenes(world, "train").ids == [lidar("scene-0061-1"), lidar("scene-0001-3")]
    assert NuScenes(world, "test").ids == [lidar("scene-0077-4")]
    assert NuScenes(world, "mini_train").ids == [lidar("scene-0061-20"), lidar("scene-0061-30")]
    assert NuScenes(world, "mini_train", version="v1.0-trainval").ids == [lidar("scene-0061-1")]
    assert NuScenes(world, "all", version="v1.0-test").ids == [lidar("scene-0077-4")]
    with pytest.raises(InputError, match="v1.0-mini has .*; v1.0-test has .*; v1.0-trainval has"):
        NuScenes(world, "pretrain_val")
    with pytest.raises(InputError, match="no nuScenes tables at .*v1.0-none"):
        NuScenes(world, "train", version="v1.0-none")


def test_all_is_every_scene_of_every_version_once(world):
    write_tables(world, make_tables({"scene-0061": [1], "scene-0103": [2], "scene-0001": [3]}), "v1.0-trainval")
    write_tables(world, make_tables({"scene-0077": [4]}), "v1.0-test")
    everything = NuScenes(world, "all")
    assert everything.ids == [lidar(f"scene-{name}") for name in ("0061-1", "0103-2", "0001-3", "0077-4")]
    assert everything.scenes == ["scene-0061", "scene-0103", "scene-0001", "scene-0077"]
    images = everything.image_files()
    assert len(set(images)) == len(images) == 4 * 6 and all(file.stem == token for token, file in images)
    assert len(NuScenes(world, "all", version="v1.0-mini")) == 3


def test_no_root(tmp_path):
    with pytest.raises(InputError, match="no nuScenes at .*gone"):
        NuScenes(tmp_path / "gone", "train")
    with pytest.raises(InputError, match="holds no nuScenes tables"):
        NuScenes(tmp_path, "train")


# The index


def test_the_index_is_kept(world, tmp_path, builds):
    first = NuScenes(world, "all").read(2, ALL)
    (cache,) = (tmp_path / "output" / "index").iterdir()
    assert cache.name.startswith("nuscenes-v1.0-mini-") and cache.suffix == ".npz"
    again = NuScenes(world, "val").read(0, ALL)
    assert len(builds) == 1
    assert again.id == first.id
    for part in ("points", "labels", "pose"):
        np.testing.assert_array_equal(getattr(again, part), getattr(first, part))
    for part in ("point", "camera", "row", "column"):
        np.testing.assert_array_equal(getattr(again.pairs, part), getattr(first.pairs, part))


def test_each_root_has_its_index(world, tmp_path, builds):
    write_tables(tmp_path / "other", make_tables({"scene-0103": [5]}))
    assert len(NuScenes(world, "all")) == 3 and len(NuScenes(tmp_path / "other", "all")) == 1
    assert len(NuScenes(world, "all")) == 3 and len(builds) == 2


def test_changed_tables_are_read_again(world, builds):
    NuScenes(world, "all")
    write_tables(world, make_tables({"scene-0061": [30], "scene-0103": [10]}))  # other sizes
    assert len(NuScenes(world, "all")) == 2
    sample = world / "v1.0-mini" / "sample.json"
    status = sample.stat()
    os.utime(sample, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # other time
    NuScenes(world, "all")
    (world / "v1.0-mini" / "lidarseg.json").unlink()  # one less
    assert NuScenes(world, "all").read(0, ALL).labels is None
    assert len(builds) == 4


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"something else"])
def test_a_broken_index_is_made_again(world, tmp_path, builds, content):
    cache = tmp_path / "index.npz"
    cache.write_bytes(content)
    for _ in range(2):
        assert len(NuScenes(world, "all", index_cache=cache)) == 3
    assert len(builds) == 1


def test_an_index_that_cannot_be_kept(world, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert len(NuScenes(world, "all", index_cache=tmp_path / "file" / "index.npz")) == 3
    assert "is not kept: cannot write" in capsys.readouterr().err


# Bad input


@pytest.mark.parametrize("table", ["sensor", "calibrated_sensor", "scene", "sample", "sample_data", "ego_pose"])
@pytest.mark.parametrize("content", [None, "[{", "{}", "3", "[3]", '[{"other": 1}]', '{"token": {"token": 1}}'])
def test_broken_tables(world, table, content):
    file = world / "v1.0-mini" / f"{table}.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(InputError, match="v1.0-mini|scene.json") as error:
        NuScenes(world, "val")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", '{"mine": "scene-0103"}', '{"mine": [1]}', "{"])
def test_broken_own_splits(world, content):
    (world / "v1.0-mini" / "splits.json").write_text(content)
    with pytest.raises(InputError, match="splits.json"):
        NuScenes(world, "mine")


def test_a_keyframe_without_one_camera(world):
    tables = make_tables({"scene-0103": [10]})
    tables["sample_data"] = [row for row in tables["sample_data"] if "CAM_BACK_LEFT" not in row["token"]]
    write_tables(world, tables)
    with pytest.raises(InputError, match="keyframe scene-0103-10-LIDAR_TOP .* lacks CAM_BACK_LEFT"):
        NuScenes(world, "val")
    cameras = NuScenes(world, "val", ReadOptions(cameras=("CAM_FRONT", "CAM_BACK"))).read(0, ALL).cameras
    assert [view.name for view in cameras] == ["CAM_FRONT", "CAM_BACK"]


def test_a_keyframe_without_the_lidar(world):
    tables = make_tables({"scene-0103": [10]})
    tables["sample_data"] = [row for row in tables["sample_data"] if "LIDAR" not in row["token"]]
    write_tables(world, tables)
    with pytest.raises(InputError, match="keyframe scene-0103-10 .* lacks LIDAR_TOP"):
        NuScenes(world, "val")


@pytest.mark.parametrize(
    "table, key, value",
    [
        ("sample_data", "filename", "../secret"),
        ("sample_data", "filename", "samples/../../secret"),
        ("sample_data", "filename", "/etc/passwd"),
        ("lidarseg", "filename", "../secret"),
    ],
)
def test_files_outside_the_root_are_refused(world, table, key, value):
    tables = make_tables({"scene-0103": [10]})
    tables[table][0][key] = value
    write_tables(world, tables)
    with pytest.raises(InputError, match=f"names? the file '{value}' outside the data set"):
        NuScenes(world, "val")


@pytest.mark.parametrize("token", ["../../a", "a/b", "", "..", "/a"])
def test_tokens_that_are_no_file_names_are_refused(world, token):
    tables = make_tables({"scene-0103": [10]})
    tables["sample_data"][2]["token"] = token
    write_tables(world, tables)
    with pytest.raises(InputError, match=f"token '{token}', no plain name"):
        NuScenes(world, "val")


@pytest.mark.parametrize("rotation", [[0, 0, 0, 0], [1, 0, 0], [float("nan"), 0, 0, 0], [2, 0, 0, 0], "north"])
def test_broken_poses(world, rotation):
    tables = make_tables({"scene-0103": [10]})
    tables["ego_pose"][0]["rotation"] = rotation
    write_tables(world, tables)
    with pytest.raises(InputError, match="do not fit together"):
        NuScenes(world, "val")


def test_broken_intrinsics(world):
    tables = make_tables({"scene-0103": [10]})
    for row in tables["calibrated_sensor"]:
        row["camera_intrinsic"] = []
    write_tables(world, tables)
    with pytest.raises(InputError, match="camera_intrinsic is not 3 x 3"):
        NuScenes(world, "val")


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("samples/scene-0103-10-LIDAR_TOP.bin", None, "cannot read .*LIDAR_TOP.bin"),
        ("samples/scene-0103-10-LIDAR_TOP.bin", b"x" * 39, "LIDAR_TOP.bin is truncated: 39 bytes"),
        ("samples/scene-0103-10-LIDAR_TOP.bin", b"\xff" * 40, "NaN or infinity in 2 of its 2 points"),
        ("lidarseg/scene-0103-10-LIDAR_TOP.bin", b"\x00" * 6, "has 6 entries for a scan of 7 points"),
        ("lidarseg/scene-0103-10-LIDAR_TOP.bin", b"\x20" * 7, "lidarseg.* has the label 32"),
        ("lidarseg/scene-0103-10-LIDAR_TOP.bin", None, "cannot read .*lidarseg"),
        ("samples/scene-0103-10-CAM_BACK.png", b"no image", "cannot decode the image .*CAM_BACK.png"),
        ("samples/scene-0103-10-CAM_BACK.png", None, "cannot read .*CAM_BACK.png"),
    ],
)
def test_broken_files(world, file, content, message):
    reader = NuScenes(world, "val")
    if content is None:
        (world / file).unlink()
    else:
        (world / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        reader.read(0, ALL)
