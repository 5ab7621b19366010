"""Pairs of registered scans: which are drawn, which points match, and that a match stays one place in the world."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import AugmentSettings
from data.datasets import find_dataset
from data.datasets.nuscenes import NuScenes
from data.datasets.semantic_kitti import SemanticKitti
from data.datasets.synthetic import SyntheticWorld, write_kitti, write_nuscenes
from data.files import DataGone, InputError
from data.frame import Frame, Needs
from data.loading import make_loader
from data.samples import NothingToDraw
from data.samples.scans import Scans, distant_pairs, find_matches
from data.subsets import select

CUT = AugmentSettings(crop=None, cuboid=0.2)
WORLD = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=3, image_scale=0.05, azimuths=64)


def pose_at(rng: np.random.Generator, place: tuple[float, float, float]) -> np.ndarray:
    """A lidar at `place`, turned about z and slightly tilted."""
    yaw, tilt = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.02)
    c, s, ct, st_ = math.cos(yaw), math.sin(yaw), math.cos(tilt), math.sin(tilt)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, ct, -st_], [0, st_, ct]])
    pose[:3, 3] = place
    return pose


class Street:
    """A Reader of scenes in which every scan sees points of one cloud, some of them moved by a few centimetres.

    A scan's intensities number its points. `places` are the lidars' x in each scene, in metres.
    """

    dataset, intensity_offset, intensity_scale = find_dataset("kitti"), 1.0, 0.5

    def __init__(self, places: dict[str, list[float]], points: int = 300, seed: int = 0, broken: tuple[int, ...] = ()):
        rng = np.random.default_rng(seed)
        self.broken, self.frames, self.scenes = broken, [], []
        for scene, xs in places.items():
            cloud = rng.uniform((-30, -30, -2), (60, 30, 6), (max(points, 1) * 3 // 2, 3)) + (1000, -700, 20)
            for x in xs:
                pose = pose_at(rng, (1000 + x, -700, 20))
                seen = rng.permutation(len(cloud))[:points]
                noise = rng.normal(0, 0.05, (points, 3)) * (rng.random((points, 1)) < 0.7)
                local = (cloud[seen] + noise - pose[:3, 3]) @ pose[:3, :3]
                rows = np.column_stack((local, np.arange(points))).astype(np.float32)
                self.frames.append(Frame(f"{scene}-{x:g}", rows, pose=pose))
                self.scenes.append(scene)
        self.ids = [frame.id for frame in self.frames]

    def __len__(self) -> int:
        return len(self.ids)

    def pose(self, index: int) -> np.ndarray:
        return self.frames[index].pose

    def read(self, index: int, needs: Needs, rng=None) -> Frame:
        assert needs == Needs(pose=True)
        if index in self.broken:
            raise InputError(f"{self.ids[index]}.bin is truncated; download it again.")
        return self.frames[index]

    def image_files(self) -> list[tuple[str, Path]]:
        raise AssertionError("images are none of a pair's business")


def in_world(frame: Frame) -> np.ndarray:
    return frame.points[:, :3].astype(np.float64) @ frame.pose[:3, :3].T + frame.pose[:3, 3]


def rows_as_read(frame: Frame) -> np.ndarray:
    return frame.points[:, 3].astype(int)


def plain_matches(first: Frame, second: Frame, distance: float) -> set[tuple[int, int]]:
    """What `find_matches` must find: each point against all others."""
    found = set()
    for i, place in enumerate(in_world(first)):
        apart = np.linalg.norm(in_world(second) - place, axis=1)
        if len(apart) and apart.min() < distance:
            found.add((i, int(apart.argmin())))
    return found


# Matches


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2, 31, 257]), st.sampled_from([0.0, 0.2, 1.0]))
def test_a_match_is_one_place_in_the_world_after_all_augmentation(seed, points, cuboid):
    """And no match is lost but those of points that a cuboid dropped; no point is lost but those inside of it."""
    reader = Street({"a": [0.0, 11.0]}, points, seed)
    scans = Scans(reader, replace(CUT, cuboid=cuboid), match_distance=0.1, min_matches=0)
    item, notes = scans.draw(0, np.random.default_rng(seed))
    assert notes.redrawn == 0 and item.matches.dtype == np.int64 and item.matches.shape[1] == 2
    a, b = item.matches.T
    apart = np.linalg.norm(in_world(item.first)[a] - in_world(item.second)[b], axis=1)
    assert np.all(apart < 0.1 + 1e-4)  # float32 at tens of metres
    first, second = rows_as_read(item.first), rows_as_read(item.second)
    expected = plain_matches(*reader.frames, 0.1)
    assert set(zip(first[a], second[b], strict=True)) == {
        (i, j) for i, j in expected if i in set(first) and j in set(second)
    }
    assert cuboid > 0 or len(item.matches) == len(expected)
    for raw, moved in zip(reader.frames, (item.first, item.second), strict=True):
        kept = rows_as_read(moved)
        np.testing.assert_allclose(in_world(moved), in_world(raw)[kept], atol=1e-4)
        inverse = np.linalg.inv(moved.pose)
        all_moved = in_world(raw) @ inverse[:3, :3].T + inverse[:3, 3]
        lost = np.setdiff1d(np.arange(points), kept)
        if len(lost):
            assert np.all(np.ptp(all_moved[lost], axis=0) <= cuboid * np.ptp(all_moved, axis=0) + 1e-3)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 400), (400, 1)])
def test_matches_of_odd_sizes(sizes):
    first, second = (Street({"a": [0.0]}, n, seed=3).frames[0] for n in sizes)
    found = find_matches(first, second, 30.0)
    assert found.dtype == np.int64 and found.shape[1] == 2
    assert set(map(tuple, found.tolist())) == plain_matches(first, second, 30.0)


def test_neighbours_at_the_distance_itself_are_none():
    near, far = (Frame("f", np.array([[x, 0, 0, 0]], np.float32), pose=np.eye(4)) for x in (0, 2))
    assert len(find_matches(near, far, 2.0)) == 0 and len(find_matches(near, far, 2.001)) == 1


def test_the_two_scans_are_moved_by_themselves():
    reader = Street({"a": [0.0, 11.0]})
    item, _ = Scans(reader, replace(CUT, cuboid=0), min_matches=1).draw(0, np.random.default_rng(0))
    turns = [
        np.linalg.inv(moved.pose) @ raw.pose
        for raw, moved in zip(reader.frames, (item.first, item.second), strict=True)
    ]
    assert not np.allclose(*turns)
    plain, _ = Scans(reader, None, min_matches=1).draw(0, np.random.default_rng(0))
    assert plain.first is reader.frames[0] and plain.second is reader.frames[1]


# Pairs


def test_pairs_are_of_one_scene_and_so_far_apart():
    reader = Street({"a": [0, 4, 11, 25], "b": [0, 10], "c": [0], "d": [0, 3]}, points=1)
    assert distant_pairs(reader, 10, None).tolist() == [[0, 2], [0, 3], [1, 3], [2, 3], [4, 5]]
    assert distant_pairs(reader, 10, 14).tolist() == [[0, 2], [2, 3], [4, 5]]
    scans = Scans(reader, None, 10, 11)
    assert scans.ids == ["a-0", "a-11", "b-0", "b-10"] and len(scans) == 4
    assert scans.describe() == "2 pairs of 4 keyframes, 10 to 11 m apart"
    assert Scans(reader).describe() == "5 pairs of 6 keyframes, 10 m or more apart"


def test_every_item_draws_from_all_pairs():
    scans = Scans(Street({"a": [0, 4, 11, 25], "b": [0, 10]}, points=20), None, min_matches=0)
    drawn = set()
    for epoch in range(30):
        item, _ = scans.draw(0, np.random.default_rng([0, epoch, 0]))
        drawn.add((item.first.id, item.second.id))
    assert len(drawn) == len(scans.pairs) == 5


def loader_of(scans: Scans, shuffle: bool = True, **options):
    return make_loader(scans, **{"batch": 2, "workers": 0, "seed": 5, "shuffle": shuffle} | options)


def test_batches_do_not_depend_on_the_workers():
    scans = Scans(Street({"a": [0, 4, 11, 25], "b": [0, 10]}), CUT, min_matches=5)
    alone, two = loader_of(scans), loader_of(scans, workers=2)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        two.set_epoch(epoch)
        for a, b in zip(alone, two, strict=True):
            assert a.ids == b.ids and torch.equal(a.matches, b.matches)
            assert torch.equal(a.first.points, b.first.points) and torch.equal(a.second.points, b.second.points)


def test_validation_sees_the_same_pairs_each_time():
    loader = loader_of(Scans(Street({"a": [0, 4, 11, 25]}), CUT, min_matches=5), shuffle=False)
    first, second = ([(b.ids, b.first.points.sum(), b.matches.sum()) for b in loader] for _ in range(2))
    assert first == second


def test_a_batch_counts_rows_over_its_scans():
    scans = Scans(Street({"a": [0, 4, 11, 25]}), CUT, min_matches=5)
    items = [scans.draw(0, np.random.default_rng(i))[0] for i in range(3)]
    batch = scans.collate(items)
    assert batch.ids == [frame.id for item in items for frame in (item.first, item.second)]
    assert batch.counts == {"scans": 6, "images": 0}
    assert len(batch.matches) == sum(len(item.matches) for item in items) and batch.matches.dtype == torch.int64
    expected = [
        [frame.points[rows] for item in items for frame, rows in ((getattr(item, side), item.matches[:, column]),)]
        for column, side in enumerate(("first", "second"))
    ]
    for column, part in enumerate((batch.first, batch.second)):
        np.testing.assert_array_equal(part.points[batch.matches[:, column]], np.concatenate(expected[column]))
        assert torch.equal(part.features[:, 0], part.points[:, 3] * 0.5 + 1)
    moved = batch.share_memory_().to("cpu")
    assert torch.equal(moved.matches, batch.matches) and moved.first.ids == batch.first.ids
    empty = scans.collate([replace(items[0], matches=items[0].matches[:0])])
    assert empty.matches.shape == (0, 2)


# Pairs that are drawn again


def test_a_pair_with_too_few_matches_is_drawn_again_and_counted():
    reader = Street({"a": [0, 11], "b": [0, 12]})
    reader.frames[3] = replace(reader.frames[3], points=reader.frames[3].points[:4])  # b has none to speak of
    scans = Scans(reader, None, min_matches=20)
    draws = [scans.draw(0, np.random.default_rng(i)) for i in range(20)]
    assert all(item.first.id == "a-0" for item, _ in draws)
    assert {notes.redrawn > 0 for _, notes in draws} == {True, False}
    loader = loader_of(scans, workers=1)
    for epoch in range(4):
        loader.set_epoch(epoch)
        list(loader)
    assert loader.redrawn > 0 and not loader.unread


def test_a_scan_that_cannot_be_read_is_named_and_its_pair_drawn_again(capsys):
    reader = Street({"a": [0, 11, 22, 33]}, broken=(2,))
    scans = Scans(reader, None, min_matches=1)
    loader = loader_of(scans, max_bad_frames=0.25)
    for epoch in range(8):
        loader.set_epoch(epoch)
        assert not any("a-22" in batch.ids for batch in loader)
    assert loader.unread == {"a-22"}
    assert capsys.readouterr().err.count("frame a-22 is left out, another stands in for it: a-22.bin is truncated") == 1
    with pytest.raises(InputError, match="a-22.bin is truncated"):
        for epoch in range(8):
            strict = loader_of(scans)
            strict.set_epoch(epoch)
            list(strict)


# Bad input


def sentence(reader, **options) -> str:
    with pytest.raises(InputError) as error:
        list(loader_of(Scans(reader, CUT, **options), max_bad_frames=0.9))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_has_no_pairs_is_said():
    alone = sentence(Street({"a": [0], "b": [0]}))
    assert alone.startswith("every scene of this split of kitti has one keyframe only, and pairs of scans are of one")
    near = sentence(Street({"a": [0, 3, 5], "b": [0]}))
    assert near == (
        "no two keyframes of one scene of kitti are 10 m or more apart (theirs are 2.0 to 5.0 m apart): change "
        "--min_distance or --max_distance."
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_pairs_without_matches_are_said_at_once(workers):
    reader = Street({"a": [0, 12]}, points=40)
    with pytest.raises(InputError) as error:
        list(loader_of(Scans(reader, CUT), workers=workers, max_bad_frames=0.9))
    assert str(error.value).startswith(
        "of 1 pairs of 2 keyframes, 10 m or more apart, 100 were drawn, and none has 1,024 points within 0.1 m of each"
    )


def test_nothing_but_unreadable_scans():
    with pytest.raises(NothingToDraw, match="is truncated"):
        Scans(Street({"a": [0, 11]}, broken=(0, 1))).draw(0, np.random.default_rng(0))


# The readers


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_nuscenes(root / "nuscenes", WORLD)
    write_kitti(root / "kitti", WORLD)
    return root


def open_both(world: Path, layout: str):
    if layout == "nuscenes":
        return NuScenes(world / "nuscenes", "train", dataset=find_dataset("synthetic"))
    return SemanticKitti(world / "kitti", "all")


@pytest.mark.parametrize("layout", ["nuscenes", "kitti"])
def test_poses_are_those_of_the_frames_and_scans_are_all_that_is_opened(layout, world, opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader = open_both(world, layout)
    opened.clear()
    poses = [reader.pose(i) for i in range(len(reader))]
    assert all(pose.shape == (4, 4) and pose.dtype == np.float64 for pose in poses)
    assert {Path(file).suffix for file in opened} <= {".txt"}
    part = select(reader, [2, 0])
    np.testing.assert_array_equal(part.pose(0), poses[2])
    scans = Scans(reader, CUT, min_distance=2, match_distance=0.5, min_matches=5)
    scans.collate([scans.draw(0, np.random.default_rng(0))[0]])
    assert {Path(file).suffix for file in opened} <= {".txt", ".bin"}
    for i, pose in enumerate(poses):
        np.testing.assert_array_equal(reader.read(i, Needs(pose=True)).pose, pose)


def test_matches_of_the_built_in_world_show_one_material(world, tmp_path, monkeypatch):
    """So its poses, those of each scan's own time, register it."""
    monkeypatch.chdir(tmp_path)
    reader = open_both(world, "nuscenes")
    first, second = (reader.read(i, Needs(pose=True, labels=True)) for i in (0, 1))
    a, b = find_matches(first, second, 0.3).T
    assert len(a) > 100 and np.mean(first.labels[a] == second.labels[b]) > 0.9


def test_missing_poses(small_world):
    for file in (small_world / "kitti").rglob("poses.txt"):
        file.unlink()
    reader = SemanticKitti(small_world / "kitti", "all")
    with pytest.raises(InputError) as error:
        Scans(reader)
    assert "poses.txt: it is not there, and poses are needed; take it from" in str(error.value)


def test_a_data_set_that_is_gone(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans = Scans(open_both(world, "nuscenes"), min_distance=2, match_distance=0.5, min_matches=5)

    def gone(*_):
        raise DataGone("the data set is gone: mount it.")

    monkeypatch.setattr(scans.reader, "read", gone)
    with pytest.raises(DataGone):
        scans.draw(0, np.random.default_rng(0))
