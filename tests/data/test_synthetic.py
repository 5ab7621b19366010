"""The built-in world: deterministic, official layouts, and lidar and cameras that see the same surfaces."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.datasets import open_reader, synthetic
from data.datasets.nuscenes import NuScenes
from data.datasets.semantic_kitti import SemanticKitti
from data.datasets.synthetic import RECORD, VERSION, SyntheticWorld, sensors, write, write_kitti, write_nuscenes
from data.datasets.synthetic.render import NUSCENES_LABEL, cast
from data.datasets.synthetic.world import make_scene
from data.files import InputError
from data.frame import Needs

ALL = Needs(cameras="all", pose=True, labels=True)
TINY = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=2, image_scale=0.1, azimuths=128)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_nuscenes(root / "nuscenes", TINY)
    write_kitti(root / "kitti", TINY)
    return root


def digest(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_one_seed_one_world(root, tmp_path):
    write_nuscenes(tmp_path / "again", TINY)
    assert digest(tmp_path / "again") == digest(root / "nuscenes")
    other = SyntheticWorld(**(TINY.__dict__ | {"seed": 1}))
    write_nuscenes(tmp_path / "other", other)
    assert not set(digest(tmp_path / "other").values()) & {
        value for name, value in digest(root / "nuscenes").items() if "LIDAR" in name
    }


def test_the_same_world_is_left_alone_and_another_is_refused(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    write_nuscenes(root / "nuscenes", TINY)
    write_kitti(root / "kitti", TINY)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="other settings"):
        write_nuscenes(root / "nuscenes", SyntheticWorld())


def test_a_killed_run_leaves_nothing_that_looks_like_a_data_set(tmp_path, monkeypatch):
    original, jobs = write._write_nuscenes_frame, []

    def dies(job):
        jobs.append(job)
        if len(jobs) == 2:
            raise KeyboardInterrupt
        original(job)

    monkeypatch.setattr(write, "_write_nuscenes_frame", dies)
    with pytest.raises(KeyboardInterrupt):
        write_nuscenes(tmp_path, TINY)
    assert not (tmp_path / VERSION).exists() and list(tmp_path.rglob("*.pcd.bin"))


def test_a_killed_run_leaves_no_kitti_sequence_either(root, tmp_path, monkeypatch):
    original, jobs = write._write_kitti_frame, []

    def dies(job):
        jobs.append(job)
        if len(jobs) == 3:
            raise KeyboardInterrupt
        original(job)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(write, "_write_kitti_frame", dies)
        write_kitti(tmp_path, TINY)
    assert list(tmp_path.rglob("*.bin"))
    with pytest.raises(InputError, match="holds neither"):
        SemanticKitti(tmp_path, "all")
    write_kitti(tmp_path, TINY)
    assert digest(tmp_path) == digest(root / "kitti")


def test_another_data_set_is_left_alone(tmp_path):
    (tmp_path / "dataset" / "sequences").mkdir(parents=True)
    with pytest.raises(InputError, match="holds another data set"):
        write_kitti(tmp_path, TINY)


def test_the_record_writes_the_world_where_it_is_not(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(synthetic, "write_nuscenes", lambda *job, workers: asked.append(job))
    with pytest.raises(InputError, match="no synthetic data set at .*: write it with"):
        open_reader("synthetic", None, "val")
    assert asked == [(Path("datasets/synthetic/nuscenes"), SyntheticWorld())]
    shutil.copytree(root, tmp_path / "datasets" / "synthetic")
    reader = open_reader("synthetic", None, "val")
    assert reader.dataset is RECORD and isinstance(reader, NuScenes) and len(reader) == 2
    assert len(asked) == 1 and len(open_reader(RECORD, tmp_path / "datasets" / "synthetic", "train")) == 2
    with pytest.raises(InputError, match="no scene of the split `mini_val`"):
        open_reader(RECORD, None, "mini_val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_readers_read_it(root, split):
    nuscenes, kitti = NuScenes(root / "nuscenes", split), SemanticKitti(root / "kitti", split)
    assert len(nuscenes) == len(kitti) == 2
    for reader, cameras in ((nuscenes, 6), (kitti, 1)):
        frame = reader.read(0, ALL)
        assert len(frame.cameras) == cameras and len(frame.pairs) > 50
        assert np.linalg.norm(frame.points[:, :3], axis=1).max() < sensors.LIDAR_RANGE + 1
        assert len(frame.labels) == len(frame.points) and (frame.labels > 0).mean() > 0.8
        intensity = frame.points[:, 3]
        assert intensity.min() >= 0 and intensity.max() <= (255 if reader is nuscenes else 1)


def test_every_class_occurs_in_any_scene():
    """Two scenes of full lidar resolution show all 16 nuScenes classes."""
    world, seen = SyntheticWorld(), set()
    for index in (0, world.train_scenes):  # the first of train, the first of val
        scene, labels = world.scene(index), set()
        for frame in range(world.frames_per_scene):
            pose = sensors.ego_pose(scene, frame * sensors.SECONDS)
            pose[2, 3] += 1.84
            rng = np.random.default_rng(frame)
            labels |= set(NUSCENES_LABEL[sensors.scan(scene, pose, world.azimuths, (-30.0, 10.0), rng)[3]])
        seen |= labels
    assert len(seen) == len(RECORD.classes) - 1


def test_cameras_and_lidar_see_the_same_surfaces(root):
    """The material that the ray caster finds at a point's pixel is the point's, but for edges."""
    frame = NuScenes(root / "nuscenes", "train").read(1, ALL)
    raw = np.fromfile(next((root / "nuscenes" / "lidarseg" / VERSION).glob(f"{frame.id}*")), np.uint8)
    scene, agreed = TINY.scene(0), []
    for i, (camera, (translation, rotation, _, offset)) in enumerate(sensors.CAMERAS.items()):
        assert frame.cameras[i].name == camera
        pose = sensors.ego_pose(scene, sensors.SECONDS + offset) @ sensors.as_pose(
            sensors.quaternion_matrix(rotation), translation
        )
        size = frame.cameras[i].image.shape[:2]
        _, material = sensors.photograph(scene, pose, sensors.camera_matrix(camera, TINY.image_scale), size)
        seen = frame.pairs.select(frame.pairs.camera == i)
        patch = [
            material[np.clip(seen.row + a, 0, size[0] - 1), np.clip(seen.column + b, 0, size[1] - 1)]
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
        ]
        inside = np.all([p == patch[4] for p in patch], axis=0)  # not at an edge
        agreed.append((NUSCENES_LABEL[patch[4]] == raw[seen.point])[inside])
    agreed = np.concatenate(agreed)
    assert len(agreed) > 300 and agreed.mean() > 0.97


def test_a_ray_straight_down_hits_the_ground_below():
    scene = make_scene(np.random.default_rng(0))
    origin = np.array([2.0, scene.middle(2.0) - 1.9, 50.0])
    hits = cast(scene, origin, np.array([[0, 0, -1.0], [0, 0, 1.0]]))
    assert abs(hits.distance[0] - 50) < 0.2 and hits.distance[1] == np.inf


def test_the_official_devkit_opens_it_and_agrees(root):
    devkit = pytest.importorskip("nuscenes.nuscenes")
    official = devkit.NuScenes(VERSION, str(root / "nuscenes"), verbose=False)
    ours = NuScenes(root / "nuscenes", "val")
    assert [s["name"] for s in official.scene][-1:] == list(dict.fromkeys(ours.scenes))
    for index in range(len(ours)):
        frame = ours.read(index, ALL)
        record = official.get("sample_data", frame.id)
        cloud = devkit.LidarPointCloud.from_file(official.get_sample_data_path(frame.id))
        assert np.array_equal(cloud.points[:3].T, frame.points[:, :3])
        labels = devkit.load_bin_file(str(root / "nuscenes" / official.get("lidarseg", frame.id)["filename"]))
        assert len(labels) == len(frame.points) and set(labels) <= set(official.lidarseg_idx2name_mapping)
        sample = official.get("sample", record["sample_token"])
        for i, view in enumerate(frame.cameras):
            assert sample["data"][view.name] == view.token
            pixels, _, _ = official.explorer.map_pointcloud_to_image(frame.id, view.token, min_dist=1.0)
            seen = frame.pairs.select(frame.pairs.camera == i)
            # the devkit keeps pixels from 1 to W - 1, ours from 0: compare those that both keep
            mine = {(int(r), int(c)) for r, c in zip(seen.row, seen.column, strict=True)}
            theirs = {(int(r), int(c)) for c, r in np.round(pixels[:2]).T}
            assert len(theirs - mine) <= 0.02 * len(theirs) + 1


def test_the_tables_are_all_there(root):
    names = "attribute calibrated_sensor category ego_pose instance lidarseg log map sample sample_annotation".split()
    for name in [*names, "sample_data", "scene", "sensor", "visibility"]:
        assert isinstance(json.loads((root / "nuscenes" / VERSION / f"{name}.json").read_text()), list)
