"""Boxes: their corners, the points inside them, and what augmentation and collation do to them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import Augmentation, apply
from data.boxes import Boxes, Detections, corners, count_points, move_boxes, points_in_boxes
from data.frame import Frame, collate


def scene(seed: int, count: int = 6, points: int = 400) -> Frame:
    """Boxes that overlap, and points around them."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.5, 6, (count, 3))
    centre = rng.uniform(-8, 8, (count, 3)) * (1, 1, 0.2)
    boxes = Boxes.of(centre, size, rng.uniform(-7, 7, count), rng.integers(0, 3, count))
    cloud = (rng.uniform(-10, 10, (points, 4)) * (1, 1, 0.3, 0)).astype(np.float32)
    return Frame("a", cloud, boxes=count_points(cloud, boxes), ignore=boxes.select(slice(0, 1)))


def naive_inside(point: np.ndarray, boxes: Boxes, i: int) -> bool:
    """By a linear solve for the coordinates along the edges from one corner."""
    at = corners(boxes)[i]
    shares = np.linalg.solve(np.stack((at[1] - at[0], at[3] - at[0], at[4] - at[0]), 1), point[:3] - at[0])
    return bool(((shares >= 0) & (shares <= 1)).all())


def test_points_are_in_the_boxes_whose_edges_span_them():
    frame = scene(0, points=1500)
    inside = np.array([[naive_inside(p, frame.boxes, i) for i in range(6)] for p in frame.points.astype(np.float64)])
    assert frame.boxes.points.tolist() == inside.sum(0).tolist() and inside.sum() > 20 and (inside.sum(1) > 1).any()
    first = np.where(inside.any(1), inside.argmax(1), -1)
    assert points_in_boxes(frame.points, frame.boxes).tolist() == first.tolist()


def test_corners_counted_by_hand():
    boxes = Boxes.of([[1, 2, 3]], [[4, 2, 1]], [math.pi / 2], [0])  # it heads along y
    expected = [(0, 4), (0, 0), (2, 0), (2, 4)]
    for z, part in ((2.5, corners(boxes)[0, :4]), (3.5, corners(boxes)[0, 4:])):
        assert part == pytest.approx(np.array([(*xy, z) for xy in expected]), abs=1e-6)


def test_the_border_is_inside_and_nan_is_in_no_box():
    boxes = Boxes.of([[0, 0, 0]], [[2, 4, 6]], [0], [0])
    points = np.array([[1, 2, 3, 0], [-1, 0, 0, 0], [1.01, 0, 0, 0], [np.nan] * 4], np.float32)
    assert points_in_boxes(points, boxes).tolist() == [0, 0, -1, -1]
    assert points_in_boxes(points[:0], boxes).shape == (0,)
    assert points_in_boxes(points, Boxes.empty()).tolist() == [-1] * 4
    assert count_points(points[:0], boxes).points.tolist() == [0]


@given(seed=st.integers(0, 10_000), angle=st.floats(-7, 7), flip_x=st.booleans(), flip_y=st.booleans())
@settings(max_examples=40)
def test_what_is_inside_stays_inside_when_the_cloud_turns_and_flips(seed, angle, flip_x, flip_y):
    frame = scene(seed)
    moved = apply(frame, Augmentation(angle=angle, flip_x=flip_x, flip_y=flip_y))
    grown, shrunk = (replace(moved.boxes, size=moved.boxes.size + np.float32(d)) for d in (1e-4, -1e-4))
    before = points_in_boxes(frame.points, frame.boxes.select([0])) == 0
    assert (points_in_boxes(moved.points, grown.select([0])) == 0)[before].all()
    assert not (points_in_boxes(moved.points, shrunk.select([0])) == 0)[~before].any()
    assert (count_points(moved.points, grown).points >= frame.boxes.points).all()
    assert (count_points(moved.points, shrunk).points <= frame.boxes.points).all()
    for boxes in (moved.boxes, moved.ignore):
        assert boxes.label.tolist() == frame.boxes.label[: len(boxes)].tolist() and (np.abs(boxes.yaw) < 3.15).all()


def test_the_heading_turns_and_is_mirrored_with_the_cloud():
    frame = scene(1)
    front = corners(frame.boxes)[:, [0, 3]].mean(1).astype(np.float32)  # of the bottom's front edge
    for drawn in (Augmentation(angle=0.3), Augmentation(flip_x=True), Augmentation(angle=2.0, flip_y=True)):
        moved = apply(replace(frame, points=np.column_stack((front, 0 * front[:, :1]))), drawn)
        assert np.allclose(corners(moved.boxes)[:, [0, 3]].mean(1), moved.points[:, :3], atol=1e-4)


def test_a_dropped_cuboid_leaves_boxes_with_fewer_points():
    frame = scene(2)
    corner = np.array([0.0, -20, -20]), np.array([20.0, 20, 20])
    moved = apply(frame, Augmentation(cuboid=corner))
    assert moved.boxes.centre.tolist() == frame.boxes.centre.tolist()
    left = count_points(frame.points[frame.points[:, 0] <= 0], frame.boxes)
    assert moved.boxes.points.tolist() == left.points.tolist()
    assert moved.boxes.points.sum() < frame.boxes.points.sum()


def test_a_batch_has_the_boxes_of_each_frame():
    frames = [scene(0), Frame("none", np.zeros((0, 4), np.float32), boxes=Boxes.empty()), scene(1, 2)]
    batch = collate(frames)
    assert batch.box_frame.tolist() == [0] * 6 + [2] * 2 and batch.ignore_frame.tolist() == [0, 2]
    assert batch.boxes.centre.shape == (8, 3) and batch.boxes.label.dtype == torch.int64
    assert batch.boxes.yaw.dtype == torch.float32
    for i, frame in enumerate(frames):
        boxes, ignore = batch.to("cpu").truth(i)
        assert boxes.centre.tolist() == frame.boxes.centre.tolist() and len(ignore) == len(frame.ignore or [])
    assert collate([frames[1]]).boxes.centre.shape == (0, 3)
    assert collate([frames[0], replace(frames[1], boxes=None)]).boxes is None


def test_boxes_are_selected_and_joined():
    boxes = scene(0).boxes
    again = Boxes.concatenate([boxes.select([1, 0]), Boxes.empty(), boxes.select(boxes.label == 9), boxes.select([2])])
    for name in ("centre", "points", "difficulty"):
        assert getattr(again, name).tolist() == getattr(boxes, name)[[1, 0, 2]].tolist()
    assert len(Boxes.concatenate([])) == 0 and Boxes.empty().size.shape == (0, 3)
    found = Detections(boxes, np.arange(6, dtype=np.float32)).select([4, 1])
    assert found.score.tolist() == [4, 1] and len(found) == 2
    assert move_boxes(Boxes.empty(), np.eye(3)).centre.shape == (0, 3)
