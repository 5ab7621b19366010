"""Boxes are drawn where they are: from above, and in a camera that is known by its point-pixel pairs alone."""

import numpy as np
import pytest
from PIL import Image

from data.boxes import Boxes, corners
from data.frame import CameraView, Frame, Pairs
from slidr import box_pictures

CLASSES, COLOURS = ("car", "person"), np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
INTRINSICS = np.array([[300.0, 0, 320], [0, 310, 180], [0, 0, 1]])
LIDAR_TO_CAMERA = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.3], [1, 0, 0, 0.2]])  # looks along the lidar's x
TRUE = INTRINSICS @ LIDAR_TO_CAMERA


def frame(pairs: int = 2000) -> Frame:
    rng = np.random.default_rng(0)
    points = np.column_stack((rng.uniform(2, 40, pairs), rng.uniform(-15, 15, pairs), rng.uniform(-2, 4, pairs)))
    u, v, depth = TRUE @ np.column_stack((points, np.ones(pairs))).T
    pixels = np.round(np.stack((v / depth, u / depth))).astype(np.int64)
    view = CameraView("CAM", "t", np.full((360, 640, 3), 90, np.uint8))
    rows = np.arange(pairs)
    seen = Pairs(rows, np.zeros(pairs, np.int64), *pixels)
    cloud = np.column_stack((points, np.zeros(pairs))).astype(np.float32)
    return Frame("f", cloud, cameras=[view], pairs=seen)


def test_a_camera_is_found_by_its_pairs():
    seen = frame()
    matrix = box_pictures.find_projection(seen.points[:, :3], np.stack((seen.pairs.column, seen.pairs.row), 1))
    rng = np.random.default_rng(1)
    places = np.column_stack((rng.uniform(3, 60, 50), rng.uniform(-20, 20, 50), rng.uniform(-2, 3, 50), np.ones(50)))
    ours, theirs = (places @ m.T for m in (matrix, TRUE))
    assert np.allclose(ours[:, 2], theirs[:, 2], rtol=0.01)  # metres of depth
    assert np.abs(ours[:, :2] / ours[:, 2:] - theirs[:, :2] / theirs[:, 2:]).max() < 1  # pixel: pairs are rounded


def test_edges_are_between_neighbours_and_end_before_the_camera():
    boxes = Boxes.of([[20, 0, 0], [0, 5, 0], [-9, 0, 0]], [[4, 2, 1.5]] * 3, [0.4, 0, 0], [0, 1, 1])
    ends = corners(boxes)[:, box_pictures.EDGES]
    lengths = np.sort(np.linalg.norm(ends[:, :, 0] - ends[:, :, 1], axis=2), axis=1)
    assert np.allclose(lengths, [1.5] * 4 + [2] * 4 + [4] * 4, atol=1e-5)
    lines, box = box_pictures.project_edges(boxes, TRUE)
    assert np.isfinite(lines).all() and (box == 0).sum() == 12 and 0 < (box == 1).sum() < 12 and 2 not in box
    whole = np.concatenate((corners(boxes)[0], np.ones((8, 1))), 1) @ TRUE.T
    assert np.allclose(lines[box == 0], (whole[:, :2] / whole[:, 2:])[box_pictures.EDGES])


@pytest.mark.parametrize("pairs", [2000, 3])
def test_pictures_are_drawn(tmp_path, pairs):
    boxes = Boxes.of([[20, 0, 0], [5, 5, 0]], [[4, 2, 1.5]] * 2, [0.4, 0], [0, 1])
    panels = {"found": (boxes, np.array([0.9, 0.2], np.float32)), "ground truth": (Boxes.empty(), None)}
    for picture in (box_pictures.birds_eye, box_pictures.camera):
        path = tmp_path / f"{picture.__name__}.png"
        picture(frame(pairs), panels, CLASSES, COLOURS, "frame f", path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        red = (pixels[..., 0] > 180) & (pixels[..., 1:].max(2) < 90)
        drawn = red[:, : int(0.85 * red.shape[1])].any()  # beside the legend
        assert drawn == (pairs > 3 or picture is box_pictures.birds_eye)
