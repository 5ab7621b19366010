"""Projection against hand-computed cases and a point-by-point definition; test_nuscenes.py holds the golden pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from data.projection import Rigid, project

INTRINSICS = np.array([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
SIZE = (80, 100)  # rows, columns
IDENTITY = Rigid.from_quaternion([1, 0, 0, 0], [0, 0, 0])

quaternions = arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1)
# multiples of 1/4 are exact in float32, so that two ways of computing must agree to the bit
clouds = arrays(np.int64, st.tuples(st.sampled_from([0, 1, 7, 1023]), st.just(3)), elements=st.integers(-60, 60)).map(
    lambda quarters: (quarters / 4).astype(np.float32)
)


def shot(*point, size=SIZE):
    """(row, column) of one point in the camera frame, or None."""
    seen, row, column = project(np.array([point], np.float32), [], [], INTRINSICS, size)
    return (row[0], column[0]) if len(seen) else None


def test_hand_computed_pixels():
    assert shot(0, 0, 2) == (40, 50)
    assert shot(0.5, -0.25, 2) == (40 - 12, 50 + 25)  # v = 27.5 -> 28: half to even
    assert shot(0.25, 0.75, 2) == (78, 62)  # v = 77.5 -> 78, u = 62.5 -> 62


@pytest.mark.parametrize(
    "point, is_seen",
    [
        ((0, 0, 1), False),  # depth must exceed 1 m
        ((0, 0, 1.001), True),
        ((0, 0, -2), False),
        ((0, 0, 0), False),
        ((-1.0, 0, 2), False),  # u = 0 exactly
        ((-0.999, 0, 2), True),
        ((0.98, 0, 2), False),  # u = 99 = width - 1 up to rounding
        ((0.979, 0, 2), True),
        ((0, -0.8, 2), False),  # v = 0
        ((0, -0.799, 2), True),
        ((0, 0.78125, 2), False),  # v = 79.06 > height - 1
        ((0, 0.7797, 2), True),
    ],
)
def test_margins(point, is_seen):
    assert (shot(*point) is not None) == is_seen


def test_margin_on_the_right_is_exclusive():
    assert shot(1, 0, 2, size=(80, 101)) is None  # u = 100 = width - 1
    assert shot(1, 0, 2, size=(80, 102)) == (40, 100)


def test_the_vehicle_moves_between_lidar_and_camera():
    # The vehicle drives 1 m along its x axis in between; the camera looks along x (z_camera = x, x_camera = -y).
    lidar = Rigid.from_quaternion([1, 0, 0, 0], [0, 0, 2])
    camera = Rigid.from_quaternion([0.5, -0.5, 0.5, -0.5], [1, 0, 2])
    before, after = (Rigid.from_quaternion([1, 0, 0, 0], [x, 0, 0]) for x in (1000, 1001))
    point = np.array([[7.0, 1.0, 0.5, 99.0]], np.float32)  # depth 7 - 1 (drive) - 1 (mount) = 5
    seen, row, column = project(point, [lidar, before], [after, camera], INTRINSICS, SIZE)
    assert (seen.tolist(), row.tolist(), column.tolist()) == ([0], [40 - 10], [50 - 20])


@settings(deadline=None)
@given(clouds)
def test_equals_the_definition_point_by_point(points):
    expected = []
    for i, (x, y, z) in enumerate(points.tolist()):
        if z > 1 and 0 < (u := 100 * x / z + 50) < 99 and 0 < (v := 100 * y / z + 40) < 79:
            expected.append((i, v, u))
    seen, row, column = project(points, [], [], INTRINSICS, SIZE)
    assert seen.tolist() == [i for i, _, _ in expected]
    assert np.abs(row - [v for _, v, _ in expected]).max(initial=0) <= 0.5 + 1e-9
    assert np.abs(column - [u for _, _, u in expected]).max(initial=0) <= 0.5 + 1e-9
    assert seen.dtype == row.dtype == column.dtype == np.int64


@settings(deadline=None)
@given(clouds, st.tuples(*[st.integers(-8, 8)] * 3))
def test_projection_matrix_is_intrinsics_behind_a_translation(points, quarters):
    offset = np.array(quarters) / 4
    matrix = INTRINSICS @ np.column_stack([np.eye(3), offset])
    by_matrix = project(points, [], [], matrix, SIZE)
    by_motion = project(points, [Rigid(np.eye(3), offset)], [], INTRINSICS, SIZE)
    for left, right in zip(by_matrix, by_motion, strict=True):
        np.testing.assert_array_equal(left, right)


@settings(deadline=None)
@given(quaternions, arrays(np.float64, 3, elements=st.floats(-1000, 1000)))
def test_quaternion_gives_the_rotation(quaternion, translation):
    motion = Rigid.from_quaternion(quaternion, translation)
    w, x, y, z = quaternion
    np.testing.assert_allclose(motion.rotation, Rotation.from_quat([x, y, z, w]).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(motion.matrix() @ [0, 0, 0, 1], [*translation, 1])


@settings(deadline=None)
@given(quaternions, arrays(np.float64, 3, elements=st.floats(-1000, 1000)), clouds)
def test_undo_is_the_inverse_of_apply(quaternion, translation, points):
    motion = Rigid.from_quaternion(quaternion, translation)
    moved = motion.apply(points.T)
    homogeneous = motion.matrix() @ np.vstack([points.T, np.ones(len(points))])
    np.testing.assert_allclose(moved, homogeneous[:3], rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(motion.undo(moved), points.T, atol=1e-3)  # 1 km in float32 has steps of 6e-5 m
    assert moved.dtype == np.float32


def test_no_points():
    for part in project(np.zeros((0, 4), np.float32), [IDENTITY], [IDENTITY], INTRINSICS, SIZE):
        assert part.shape == (0,)
