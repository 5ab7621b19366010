"""The nuScenes reader against the published code's pairs, the devkit, and small hand-made roots."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets.dataset import ReadOptions
from data.datasets.layout import read_points
from data.datasets.nuscenes import CAMERAS, NuScenes
from data.files import InputError
from data.frame import Needs

ALL = Needs(cameras="all", pose=True, labels=True)
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
    frame = NuScenes(real, "all").read(0, Needs(labels=True, pose=True))
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
        frame = reader.read(i, ALL)
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
        np.testing.assert_array_equal(frame.labels == reader.dataset.classes.index("car"), cars)

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
    frame = NuScenes(world, "val").read(0, ALL)
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
    frame = NuScenes(world, "val").read(0, Needs())
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
    frame = NuScenes(world, "val").read(0, Needs(labels=True, pose=True))
    expected = [[0, 1, 0, 98], [-1, 0, 0, 1], [0, 0, 1, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(frame.pose, expected, atol=1e-12)


def test_an_empty_scan_is_a_frame(world):
    for folder in ("samples", "lidarseg"):
        (world / folder / "scene-0103-10-LIDAR_TOP.bin").write_bytes(b"")
    frame = NuScenes(world, "val").read(0, ALL)
    assert frame.points.shape == (0, 4) and frame.labels.shape == (0,) and len(frame.pairs) == 0


@pytest.mark.parametrize("empty", [True, False])
def test_without_lidarseg_there_are_no_labels(world, empty):
    if empty:
        (world / "v1.0-mini" / "lidarseg.json").write_text("[]")
    else:
        (world / "v1.0-mini" / "lidarseg.json").unlink()
    assert NuScenes(world, "val").read(0, ALL).labels is None


@pytest.mark.parametrize(
    ("needs", "kinds"),
    [
        (Needs(), {"LIDAR_TOP"}),
        (Needs(pose=True), {"LIDAR_TOP"}),
        (Needs(labels=True), {"LIDAR_TOP", "lidarseg"}),
        (Needs(cameras=1), {"LIDAR_TOP", "CAM_FRONT"}),
        (ALL, {"LIDAR_TOP", "lidarseg", *CAMERAS}),
    ],
)
def test_no_other_file_is_opened(world, opened, needs, kinds):
    reader = NuScenes(world, "val")
    opened.clear()
    frame = reader.read(0, needs)
    samples, labels = world / "samples" / "scene-0103-10", world / "lidarseg" / "scene-0103-10-LIDAR_TOP.bin"
    files = {"lidarseg": labels, "LIDAR_TOP": Path(f"{samples}-LIDAR_TOP.bin")}
    assert opened == {files.get(kind, Path(f"{samples}-{kind}.png")) for kind in kinds}
    assert (frame.labels is not None, frame.pose is not None) == (needs.labels, needs.pose)
    assert len(frame.cameras) == len(kinds & set(CAMERAS)) and bool(len(frame.pairs)) == bool(frame.cameras)


# Cameras and columns


def drawn(reader, index, seed):
    (view,) = (frame := reader.read(index, Needs(cameras=1), np.random.default_rng(seed))).cameras
    assert set(frame.pairs.camera) == {0} and frame.pairs.point.tolist() == [2, 3, 4, 5, 6]
    return view.name


def test_one_camera_is_drawn(world):
    reader = NuScenes(world, "val")
    names = [drawn(reader, 0, seed) for seed in range(60)]
    assert set(names) == set(CAMERAS) and names == [drawn(reader, 0, seed) for seed in range(60)]
    assert reader.read(0, Needs(cameras=1)).cameras[0].name == "CAM_FRONT"


def test_one_cameras_pairs_are_those_of_all(real):
    reader = NuScenes(real, "all")
    everything = reader.read(0, Needs(cameras="all"))
    for seed in range(3):
        one = reader.read(0, Needs(cameras=1), np.random.default_rng(seed))
        camera = CAMERAS.index(one.cameras[0].name)
        expected = everything.pairs.select(everything.pairs.camera == camera)
        for name in ("point", "row", "column"):
            np.testing.assert_array_equal(getattr(one.pairs, name), getattr(expected, name))
        np.testing.assert_array_equal(one.cameras[0].image, everything.cameras[camera].image)


@pytest.mark.parametrize("cameras", [("CAM_BACK",), ("CAM_BACK_LEFT", "CAM_FRONT")])
def test_the_cameras_asked_for_in_their_order(world, builds, cameras):
    NuScenes(world, "all")
    reader = NuScenes(world, "all", ReadOptions(cameras=cameras))
    frame = reader.read(0, ALL)
    assert tuple(view.name for view in frame.cameras) == cameras and set(frame.pairs.camera) == set(range(len(cameras)))
    assert [token for token, _ in reader.image_files()[: len(cameras)]] == [f"scene-0061-20-{name}" for name in cameras]
    assert len(reader.image_files()) == 3 * len(cameras)
    assert len(builds) == 1  # one index serves any cameras


def rename_cameras(tables, names):
    """The tables of a rig with other cameras: the first official ones renamed, the others gone."""
    renamed = dict(zip(CAMERAS, names, strict=False))
    gone = set(CAMERAS) - set(renamed)
    for row in tables["sensor"]:
        row["modality"] = {"LIDAR": "lidar", "RADAR": "radar", "CAM": "camera"}[row["channel"].split("_")[0]]
        row["channel"] = renamed.get(row["channel"], row["channel"])
    tables["sensor"] = [row for row in tables["sensor"] if row["channel"] not in gone]
    kept = {row["token"] for row in tables["sensor"]}
    tables["calibrated_sensor"] = [row for row in tables["calibrated_sensor"] if row["sensor_token"] in kept]


@pytest.mark.parametrize("names", [("CAM_A", "CAM_B"), ("CAM_FRONT",), ()])
def test_a_rig_with_other_cameras(world, capsys, names):
    tables = make_tables({"scene-0103": [10]})
    rename_cameras(tables, names)
    write_tables(world, tables)
    for _ in range(2):
        reader = NuScenes(world, "val")
    assert (
        capsys.readouterr().err.count(f"lacks some of nuScenes' six cameras; reading {', '.join(names) or 'none'}") == 1
    )
    if names:
        frame = reader.read(0, ALL)
        assert tuple(view.name for view in frame.cameras) == names
        assert frame.pairs.point.tolist() == [2, 3, 4, 5, 6] * len(names)
        NuScenes(world, "val", ReadOptions(cameras=names[:1]))
        assert not capsys.readouterr().err
    else:
        assert len(reader.read(0, Needs(labels=True, pose=True)).points) == POINTS
        with pytest.raises(InputError, match="the frame scene-0103-10-LIDAR_TOP has no camera"):
            reader.read(0, ALL)


@pytest.mark.parametrize("cameras", [("CAM_FRONT", "CAM_TOP"), ("CAM_FRONT", "CAM_FRONT"), ()])
def test_cameras_that_cannot_be_read(world, cameras):
    with pytest.raises(InputError, match=rf"the cameras .* cannot be read: .*v1.0-mini has {', '.join(CAMERAS)}; name"):
        NuScenes(world, "val", ReadOptions(cameras=cameras))


@pytest.mark.parametrize("columns", [4, 6])
def test_another_number_of_columns(world, columns):
    file = world / "samples" / "scene-0103-10-LIDAR_TOP.bin"
    points = np.arange(POINTS * columns, dtype=np.float32).reshape(POINTS, columns)
    points.tofile(file)
    reader = NuScenes(world, "val", ReadOptions(columns=columns, intensity_scale=255.0))
    np.testing.assert_array_equal(reader.read(0, ALL).points, points[:, :4])
    assert (reader.intensity_scale, reader.intensity_offset) == (255.0, 0.0)


def test_rows_of_another_length_give_themselves_away(real, world):
    """Four numbers a point where the layout has five, of a length that happens to divide."""
    scan = read_points(next((real / "samples" / "LIDAR_TOP").iterdir()), 5)[:20_000]
    scan.tofile(world / "samples" / "scene-0103-10-LIDAR_TOP.bin")
    with pytest.raises(InputError, match="LIDAR_TOP.bin does not seem to have 5 columns"):
        NuScenes(world, "val").read(0, Needs())
    np.testing.assert_array_equal(NuScenes(world, "val", ReadOptions(columns=4)).read(0, Needs()).points, scan)
