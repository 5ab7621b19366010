"""The nuScenes reader against the published code's pairs, the devkit, and small hand-made roots."""

import json
import os

import numpy as np
import pytest
from PIL import Image

import data.nuscenes
from data.disk import InputError
from data.nuscenes import CAMERAS, NuScenes

POINTS, HEIGHT, WIDTH = 7, 6, 8
MOTION = {"rotation": [1.0, 0.0, 0.0, 0.0], "translation": [0.0, 0.0, 0.0]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The index goes to output/index of the working folder: not the repository's."""
    monkeypatch.chdir(tmp_path)


def make_tables(keyframes: dict[str, list[int]]) -> dict[str, list[dict]]:
    """Tables of a world with the given scenes and the timestamps of their keyframes, in this order."""
    channels = ("LIDAR_TOP", *CAMERAS, "RADAR_FRONT")
    intrinsics = [[4.0, 0.0, 4.0], [0.0, 4.0, 3.0], [0.0, 0.0, 1.0]]
    tables = {
        "sensor": [{"token": f"sensor-{c}", "channel": c} for c in channels],
        "calibrated_sensor": [
            {"token": f"mount-{c}", "sensor_token": f"sensor-{c}", **MOTION}
            | {"camera_intrinsic": intrinsics if c in CAMERAS else []}
            for c in channels
        ],
        "scene": [{"token": f"token-{scene}", "name": scene} for scene in keyframes],
        **{name: [] for name in ("sample", "sample_data", "ego_pose", "lidarseg")},
    }
    for scene, timestamps in keyframes.items():
        for time in timestamps:
            sample = f"{scene}-{time}"
            tables["sample"].append({"token": sample, "scene_token": f"token-{scene}", "timestamp": time})
            for channel in channels:
                for key in (True, False):  # the second is a sweep, which is no keyframe
                    token = f"{sample}-{channel}{'' if key else '-sweep'}"
                    suffix = "bin" if channel == "LIDAR_TOP" else "png"
                    tables["sample_data"].append(
                        {"token": token, "sample_token": sample, "ego_pose_token": f"ego-{token}", "is_key_frame": key}
                        | {"calibrated_sensor_token": f"mount-{channel}", "filename": f"samples/{token}.{suffix}"}
                    )
                    tables["ego_pose"].append({"token": f"ego-{token}", **MOTION})
            lidar = f"{sample}-LIDAR_TOP"
            tables["lidarseg"].append({"sample_data_token": lidar, "filename": f"lidarseg/{lidar}.bin"})
    return tables


def write_tables(root, tables, version="v1.0-mini"):
    folder = root / version
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))


def write_world(root, tables):
    """Tables, and points (0 to 6 m ahead of every sensor), labels and grey images for their keyframes."""
    write_tables(root, tables)
    (root / "samples").mkdir()
    (root / "lidarseg").mkdir()
    points = np.zeros((POINTS, 5), np.float32)
    points[:, 2] = np.arange(POINTS)
    for row in tables["sample_data"]:
        if row["filename"].endswith("bin"):
            points.tofile(root / row["filename"])
        else:
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)).save(root / row["filename"])
    for row in tables["lidarseg"]:
        np.full(POINTS, 17, np.uint8).tofile(root / row["filename"])


@pytest.fixture
def world(tmp_path):
    """A root with scene-0061 (train, mini_train), two keyframes out of order, and scene-0103 (val, mini_val), one."""
    root = tmp_path / "world"
    write_world(root, make_tables({"scene-0061": [30, 20], "scene-0103": [10]}))
    return root


def lidar(sample):
    return f"{sample}-LIDAR_TOP"


# Real frames


@pytest.fixture
def real(shared):
    return shared("realdata", "nuscenes2")


def test_labels_are_the_published_codes(real, shared):
    golden = np.load(shared("golden", "step", "E2_nuscenes0.npz"))
    frame = NuScenes(real, "all").read(0, images=False)
    np.testing.assert_array_equal(frame.labels, golden["point_labels"])
    assert frame.labels.dtype == np.uint8


def test_agrees_with_the_devkit(real):
    devkit = pytest.importorskip("nuscenes.nuscenes").NuScenes("v1.0-mini", str(real), verbose=False)
    classes = pytest.importorskip("nuscenes.utils.data_classes")
    geometry = pytest.importorskip("nuscenes.utils.geometry_utils")
    from pyquaternion import Quaternion

    reader = NuScenes(real, "all")
    assert reader.scenes == [scene["name"] for scene in devkit.scene]
    files = dict(reader.image_files())
    for i, sample in enumerate(devkit.sample):
        frame = reader.read(i)
        assert frame.id == sample["data"]["LIDAR_TOP"]
        scan = devkit.get("sample_data", frame.id)
        cloud = classes.LidarPointCloud.from_file(devkit.get_sample_data_path(frame.id))
        np.testing.assert_array_equal(frame.points, cloud.points.T)

        pose = np.eye(4)
        for table, token in (
            ("ego_pose", scan["ego_pose_token"]),
            ("calibrated_sensor", scan["calibrated_sensor_token"]),
        ):
            row = devkit.get(table, token)
            pose = pose @ geometry.transform_matrix(row["translation"], Quaternion(row["rotation"]))
        np.testing.assert_allclose(frame.pose, pose, atol=1e-9)

        raw = np.fromfile(real / devkit.get("lidarseg", frame.id)["filename"], np.uint8)
        assert len(raw) == len(frame.labels)
        cars = raw == devkit.lidarseg_name2idx_mapping["vehicle.car"]
        np.testing.assert_array_equal(frame.labels == reader.classes.index("car"), cars)

        for camera, view in enumerate(frame.cameras):
            assert view.token == sample["data"][view.name]
            assert str(files[view.token]) == devkit.get_sample_data_path(view.token)
            pixels, depths, _ = devkit.explorer.map_pointcloud_to_image(frame.id, view.token)
            theirs = np.round(pixels[:2]).astype(int)  # column, row; with a wider margin than SLidR's
            ours = np.stack([frame.pairs.column, frame.pairs.row])[:, frame.pairs.camera == camera]
            theirs, ours = (p[:, (p > 1).all(0) & (p[0] < 1598) & (p[1] < 898)] for p in (theirs, ours))
            assert len(depths) > 2000
            np.testing.assert_array_equal(ours, theirs)


# Hand-made roots


def test_order_ids_and_files(world):
    reader = NuScenes(world, "all")
    assert reader.scenes == ["scene-0061", "scene-0061", "scene-0103"]
    assert reader.ids == [lidar("scene-0061-20"), lidar("scene-0061-30"), lidar("scene-0103-10")]
    files = reader.image_files()
    assert len(files) == len(set(files)) == 3 * 6
    assert files[0] == ("scene-0061-20-CAM_FRONT", world / "samples" / "scene-0061-20-CAM_FRONT.png")
    assert all(file.exists() for _, file in files)


def test_scenes_in_the_order_of_their_table(tmp_path):
    write_tables(tmp_path, make_tables({"b": [30], "a": [20], "c": [10]}))
    assert NuScenes(tmp_path, "all").scenes == ["b", "a", "c"]


def test_read(world):
    frame = NuScenes(world, "val").read(0)
    assert frame.points.shape == (POINTS, 4) and frame.points.dtype == np.float32
    assert frame.labels.tolist() == [4] * POINTS  # 17 = vehicle.car
    np.testing.assert_array_equal(frame.pose, np.eye(4))
    # the points 2 to 6 m ahead lie in the middle of each of the six images
    assert frame.pairs.point.tolist() == [2, 3, 4, 5, 6] * 6
    assert frame.pairs.camera.tolist() == np.repeat(np.arange(6), 5).tolist()
    assert set(frame.pairs.row) == {3} and set(frame.pairs.column) == {4}


def test_read_only_what_is_asked_for(world):
    for file in (world / "samples").glob("*.png"):
        file.unlink()
    frame = NuScenes(world, "val").read(0, images=False, labels=False)
    assert frame.labels is None and frame.cameras == [] and len(frame.pairs) == 0 and len(frame.points) == POINTS


def test_each_sensor_has_its_own_mount_and_pose(world):
    tables = make_tables({"scene-0103": [10]})
    for i, row in enumerate(tables["ego_pose"]):
        row["translation"] = [float(i), 0.0, 0.0]
    for i, row in enumerate(tables["calibrated_sensor"]):
        row["translation"] = [0.0, 10.0 * i, 0.0]
    turned = next(row for row in tables["calibrated_sensor"] if row["token"] == "mount-LIDAR_TOP")
    turned["rotation"] = [0.0, 0.0, 0.0, 1.0]  # half a turn about z
    turned["translation"] = [1.0, 2.0, 3.0]
    tables["ego_pose"][0] |= {"rotation": [0.5**0.5, 0.0, 0.0, 0.5**0.5], "translation": [100.0, 0.0, 0.0]}
    write_tables(world, tables)
    frame = NuScenes(world, "val").read(0, images=False)
    expected = [[0, 1, 0, 98], [-1, 0, 0, 1], [0, 0, 1, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(frame.pose, expected, atol=1e-12)


def test_an_empty_scan_is_a_frame(world):
    for folder in ("samples", "lidarseg"):
        (world / folder / "scene-0103-10-LIDAR_TOP.bin").write_bytes(b"")
    frame = NuScenes(world, "val").read(0)
    assert frame.points.shape == (0, 4) and frame.labels.shape == (0,) and len(frame.pairs) == 0


@pytest.mark.parametrize("empty", [True, False])
def test_without_lidarseg_there_are_no_labels(world, empty):
    if empty:
        (world / "v1.0-mini" / "lidarseg.json").write_text("[]")
    else:
        (world / "v1.0-mini" / "lidarseg.json").unlink()
    assert NuScenes(world, "val").read(0).labels is None


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
    assert NuScenes(world, "mini_train", "v1.0-trainval").ids == [lidar("scene-0061-1")]
    assert NuScenes(world, "all", "v1.0-test").ids == [lidar("scene-0077-4")]
    with pytest.raises(InputError, match="v1.0-mini has .*; v1.0-test has .*; v1.0-trainval has"):
        NuScenes(world, "pretrain_val")
    with pytest.raises(InputError, match="no nuScenes tables at .*v1.0-none"):
        NuScenes(world, "train", "v1.0-none")


def test_all_is_every_scene_of_every_version_once(world):
    write_tables(world, make_tables({"scene-0061": [1], "scene-0103": [2], "scene-0001": [3]}), "v1.0-trainval")
    write_tables(world, make_tables({"scene-0077": [4]}), "v1.0-test")
    everything = NuScenes(world, "all")
    assert everything.ids == [lidar(f"scene-{name}") for name in ("0061-1", "0103-2", "0001-3", "0077-4")]
    assert everything.scenes == ["scene-0061", "scene-0103", "scene-0001", "scene-0077"]
    images = everything.image_files()
    assert len(set(images)) == len(images) == 4 * 6 and all(file.stem == token for token, file in images)
    assert len(NuScenes(world, "all", "v1.0-mini")) == 3


def test_no_root(tmp_path):
    with pytest.raises(InputError, match="no nuScenes at .*gone"):
        NuScenes(tmp_path / "gone", "train")
    with pytest.raises(InputError, match="holds no nuScenes tables"):
        NuScenes(tmp_path, "train")


# The index


@pytest.fixture
def builds(monkeypatch):
    """Counts how often the tables are parsed."""
    calls, build = [], data.nuscenes._build_index
    monkeypatch.setattr(data.nuscenes, "_build_index", lambda folder: calls.append(folder) or build(folder))
    return calls


def test_the_index_is_kept(world, tmp_path, builds):
    first = NuScenes(world, "all").read(2)
    (cache,) = (tmp_path / "output" / "index").iterdir()
    assert cache.name.startswith("nuscenes-v1.0-mini-") and cache.suffix == ".npz"
    again = NuScenes(world, "val").read(0)
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
    assert NuScenes(world, "all").read(0).labels is None
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
    with pytest.raises(InputError, match="keyframe scene-0103-10 .* lacks CAM_BACK_LEFT"):
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
        ("samples/scene-0103-10-CAM_BACK.png", None, "cannot decode the image .*CAM_BACK.png"),
    ],
)
def test_broken_files(world, file, content, message):
    reader = NuScenes(world, "val")
    if content is None:
        (world / file).unlink()
    else:
        (world / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        reader.read(0)
