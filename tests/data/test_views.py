"""Independent views of one scan (data.samples.views)."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.files import InputError
from data.frame import Frame, Needs
from data.loading import make_loader
from data.samples import views
from data.samples.views import View, Views, ViewSettings, apply, draw

SMALL = ViewSettings(enough=100)


def cloud(points: int, seed: int = 0, reach: float = 60.0) -> np.ndarray:
    """Uniform in a disc of `reach` metres; the intensity is the row."""
    rng = np.random.default_rng(seed)
    rho, phi = reach * np.sqrt(rng.random(points)), rng.uniform(-np.pi, np.pi, points)
    xyz = np.stack((rho * np.cos(phi), rho * np.sin(phi), rng.uniform(-2, 4, points)), 1)
    return np.column_stack((xyz, np.arange(points))).astype(np.float32)


class Scans:
    """A Reader of random scans with the given numbers of points."""

    dataset, intensity_offset, intensity_scale = None, 1.0, 0.5

    def __init__(self, *points: int):
        self.points, self.ids = points, [f"s{i}" for i in range(len(points))]

    def __len__(self):
        return len(self.points)

    def read(self, index: int, needs: Needs, rng=None) -> Frame:
        assert needs == Needs()
        return Frame(self.ids[index], cloud(self.points[index], index))


class Fixed:
    """Stands in for a generator: every number is the middle of its range, every choice the first."""

    def uniform(self, low, high, size=None):
        return np.full(size, (low + high) / 2) if size else (low + high) / 2

    def integers(self, high):
        return 0

    def random(self):
        return 0.0

    def permutation(self, values):
        return np.arange(values) if isinstance(values, int) else values


def test_what_is_drawn_happens_in_order():
    points = cloud(2000)
    points[0, :3] = 10, 5, 1
    view = draw(Fixed(), points, ViewSettings(enough=10, angle=45))
    assert view.flip_y and view.angle == 0 and view.scale == 1
    low, high = view.box
    reach = np.array([np.ptp(points[:, 0]), np.ptp(points[:, 1])])
    assert np.allclose(low, [10, 5] - 0.75 * reach / 2) and np.allclose(high, [10, 5] + 0.75 * reach / 2)
    kept = points[((points[:, :2] >= low) & (points[:, :2] <= high)).all(1)]
    sides = 0.2 * np.array([np.ptp(kept[:, i]) for i in range(3)])
    assert np.allclose(view.cuboid[1] - view.cuboid[0], sides)
    assert np.allclose(np.add(*view.cuboid) / 2, kept[0, :3])
    moved = apply(points, replace(view, angle=np.pi / 2, scale=2.0))
    rest = points[moved[:, 3].astype(int)]
    assert len(rest) < len(kept) and set(rest[:, 3]) <= set(kept[:, 3])
    # y changes its sign, then (x, y) -> (-y, x), then all is doubled
    assert np.allclose(moved[:, :3], 2 * np.stack((rest[:, 1], rest[:, 0], rest[:, 2]), 1), atol=1e-4)


def test_a_view_without_parameters_is_the_cloud():
    points = cloud(50)
    assert np.array_equal(apply(points, View()), points)


@given(st.integers(0, 2**32), st.integers(1, 600), st.one_of(st.none(), st.integers(1, 800)))
def test_a_view_holds_points_of_the_cloud_that_moved_together(seed, size, count):
    points = cloud(size, seed)
    before = points.copy()
    view = draw(np.random.default_rng(seed), points, SMALL, count)
    moved = apply(points, view)
    assert np.array_equal(points, before)
    assert moved.dtype == np.float32 and len(moved) == (count or len(moved)) >= 1
    assert abs(view.angle) <= np.pi / 4 and 0.95 <= view.scale <= 1.05
    rows = moved[:, 3].astype(int)
    assert np.allclose(
        np.linalg.norm(moved[:, :3], axis=1), view.scale * np.linalg.norm(points[rows, :3], axis=1), rtol=1e-5
    )
    assert np.allclose(moved[:, 2], view.scale * points[rows, 2], rtol=1e-5)
    turned = moved[:, 0] + 1j * moved[:, 1]
    straight = points[rows, 0] + 1j * points[rows, 1] * (-1 if view.flip_y else 1)
    assert np.allclose(turned, view.scale * np.exp(1j * view.angle) * straight, atol=1e-3)
    all_left = apply(points, replace(view, rows=None))[:, 3]
    assert set(moved[:, 3]) <= set(all_left) and len(np.unique(all_left)) == len(all_left)


@given(st.integers(0, 2**32))
def test_the_box_is_large_enough_and_nearly_square(seed):
    points = cloud(1000, seed)
    (low, high), reach = draw(np.random.default_rng(seed), points, SMALL).box, np.ptp(points[:, :2], axis=0)
    sides = high - low
    assert (sides >= 0.499 * reach).all() and (sides <= 1.001 * reach).all()
    assert sides.min() >= 0.75 * sides.max()
    inside = ((points[:, :2] >= low) & (points[:, :2] <= high)).all(1).sum()
    assert 100 < inside <= 1000


def test_a_box_that_no_draw_can_fill_is_taken_after_so_many():
    points = cloud(102)
    for seed in range(20):  # 102 points, more than 101 of them in a box that is smaller than their range
        assert len(apply(points, draw(np.random.default_rng(seed), points, ViewSettings(enough=101)))) >= 1


def test_all_far_points_stay_and_near_ones_fill_up():
    far = np.arange(1000) % 5 == 0
    rows = views._draw_rows(np.random.default_rng(0), far, 500)
    assert set(np.flatnonzero(far)) <= set(rows) and len(set(rows)) == 500
    assert not np.array_equal(rows, np.sort(rows))
    rows = views._draw_rows(np.random.default_rng(0), far, 150)
    assert far[rows].all() and len(set(rows)) == 150


def test_too_few_points_are_repeated_equally_often():
    rows = views._draw_rows(np.random.default_rng(0), np.zeros(7, bool), 30)
    assert len(rows) == 30 and set(np.bincount(rows, minlength=7)) == {4, 5}


def test_distance_counts_after_all_that_moves_the_points():
    points = np.array([[39.9, 0, 0, 0], [40.1, 0, 0, 1], [0, 1, 0, 2]], np.float32)
    settings = ViewSettings(kept=(2, 2), dropped=0)  # the box holds all of them
    many = np.repeat(points, 50, 0)
    for scale, expected in ((0.95, {0, 1, 2}), (1.0, {1}), (1.05, {0, 1})):
        view = draw(np.random.default_rng(3), many, replace(settings, scale=(scale, scale)), 50)
        assert set(apply(many, view)[:, 3]) == expected


def test_one_point_and_points_in_one_place():
    for points in (np.ones((1, 4), np.float32), np.ones((5, 4), np.float32)):
        view = draw(np.random.default_rng(0), points, ViewSettings(), 4)
        assert apply(points, view).shape == (4, 4)
        assert len(apply(points, replace(view, rows=None))) == len(points)


PARTS = {"points": 64, "voxels": None, "more voxels": None}


def test_an_item_has_independent_views_of_at_most_so_many_points():
    sample = Views(Scans(5000, 3000), PARTS, SMALL, most=400)
    assert sample.ids == ["s0", "s1"] and len(sample) == 2
    item, notes = sample.draw(0, np.random.default_rng(0))
    assert list(item) == list(PARTS) and not notes.unread and not notes.redrawn
    assert len(item["points"].points) == 64
    used = {int(row) for view in item.values() for row in view.points[:, 3]}
    assert 64 < len(used) <= 400
    assert not np.array_equal(item["voxels"].points[:20], item["more voxels"].points[:20])
    again, _ = sample.draw(0, np.random.default_rng(0))
    other, _ = sample.draw(0, np.random.default_rng(1))
    for name in PARTS:
        assert np.array_equal(item[name].points, again[name].points)
        assert not np.array_equal(item[name].points[:20], other[name].points[:20])


def test_an_empty_scan_is_a_sentence():
    with pytest.raises(InputError, match="the scan s1 has no points: remove it"):
        Views(Scans(5, 0), PARTS).draw(1, np.random.default_rng(0))


def test_a_batch_has_named_parts():
    sample = Views(Scans(500, 1, 40), PARTS, SMALL)
    items = [sample.draw(i, np.random.default_rng(i))[0] for i in range(3)]
    batch = sample.collate(items)
    assert batch.ids == ["s0", "s1", "s2"] and batch.counts == {"scans": 3, "images": 0}
    assert batch["points"].points.shape == (192, 4)
    assert torch.equal(batch["points"].batch_index, torch.arange(3).repeat_interleave(64))
    for name in PARTS:
        part = batch[name]
        assert part.ids == batch.ids
        assert torch.equal(part.features, part.points[:, 3:] * 0.5 + 1)
        assert part.points.shape[0] == sum(len(item[name].points) for item in items)
    for moved in (batch.to("cpu"), batch.share_memory_(), pickle.loads(pickle.dumps(batch))):
        assert all(torch.equal(moved[name].points, batch[name].points) for name in PARTS)
    assert batch.share_memory_()["voxels"].points.is_shared()
    assert batch.to("meta")["points"].batch_index.device.type == "meta"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_the_number_of_workers(workers):
    def batches(workers: int) -> list:
        loader = make_loader(Views(Scans(*range(90, 95)), PARTS), batch=2, workers=workers, seed=7, shuffle=True)
        loader.set_epoch(1)
        return list(loader)

    for ours, theirs in zip(batches(workers), batches(0), strict=True):
        assert ours.ids == theirs.ids
        assert all(torch.equal(ours[name].points, theirs[name].points) for name in PARTS)
