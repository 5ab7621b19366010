"""Augmentations: no pair ever shows another colour, and draws are what they should be.

That they equal the published code's for its parameters: tests/slidr/test_step.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import maximum_filter, minimum_filter

from data import augment, superpixels
from data.augment import DRAWS, Augmentation, AugmentSettings, apply, draw
from data.datasets.semantic_kitti import SemanticKitti
from data.frame import CameraView, Frame, Needs, Pairs

PUBLISHED = AugmentSettings()


class Scripted:
    """A generator that hands out what a test imposes, in order."""

    def __init__(self, uniform=(), integers=()):
        self._uniform, self._integers = iter(uniform), iter(integers)

    def uniform(self, *_):
        return next(self._uniform)

    def integers(self, *_):
        return next(self._integers)


def pixels(pairs: Pairs) -> np.ndarray:
    return np.stack([pairs.camera, pairs.row, pairs.column], 1)


# What holds for every draw


def make_frame(rng, points: int, cameras: int, size: tuple[int, int], pairs: int) -> Frame:
    """A frame whose intensities number the points, colours and superpixels the pixels; at most 256 x 256 pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([y, x, 0 * x], 2).astype(np.uint8)
    superpixels = (y * size[1] + x).astype(np.int32)
    cloud = rng.normal(scale=20, size=(points, 4)).astype(np.float32)
    cloud[:, 3] = np.arange(points)
    seen = [np.sort(rng.permutation(points)[:pairs]) for _ in range(cameras)]  # at most one pair of point and camera
    return Frame(
        "frame",
        cloud,
        labels=(np.arange(points) % 17).astype(np.uint8),
        cameras=[CameraView(f"c{c}", f"t{c}", image, superpixels) for c in range(cameras)],
        pairs=Pairs.concatenate(
            [
                Pairs(s, np.full(len(s), c), rng.integers(0, size[0], len(s)), rng.integers(0, size[1], len(s)))
                for c, s in enumerate(seen)
            ]
        ),
        pose=np.array([[0, -1, 0, 4], [1, 0, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]], float),
    )


def check_pairs(before: Frame, after: Frame, drawn: Augmentation, colour_step: int = 1) -> None:
    """Every pair of `after` is one of `before`, at the pixel that shows its colour and carries its superpixel id.

    `before` as by make_frame, but colours may number every `colour_step`-th row and column.
    """
    original = {(p, c): i for i, (p, c) in enumerate(zip(before.pairs.point, before.pairs.camera, strict=True))}
    point, camera, row, column = (getattr(after.pairs, n) for n in ("point", "camera", "row", "column"))
    assert all(a.dtype == np.int64 for a in (point, camera, row, column))
    assert len(point) == 0 or (point.min() >= 0 and point.max() < len(after.points))
    source = np.array([original[p, c] for p, c in zip(after.points[point, 3].astype(int), camera, strict=True)], int)
    assert len(set(source)) == len(source)
    for i, view in enumerate(after.cameras):
        here, was = camera == i, source[camera == i]
        assert view.image.dtype == np.float32 and view.image.shape == (*drawn.crop, 3)
        assert view.superpixels.shape == drawn.crop
        ids, colours = view.superpixels[row[here], column[here]], view.image[row[here], column[here]] * 255
        size = before.cameras[i].image.shape[:2]
        shown = np.divmod(ids, size[1])
        for axis, name in enumerate(("row", "column")):
            target = getattr(after.pairs, name)[here]
            assert ((target >= 0) & (target < drawn.crop[axis])).all()
            wanted = getattr(before.pairs, name)[was]
            scale = drawn.boxes[i][2 + axis] / drawn.crop[axis]
            # half a new pixel by rounding, a whole one at the edge of a whole image
            rounding = scale * (1 if drawn.boxes[i][2:] == size else 0.5) + 1e-3
            assert (np.abs(shown[axis] - wanted) <= rounding + 1).all()
            sampling = abs(scale - 1) / 2  # between a new pixel's centre and its corner
            assert (np.abs(colours[:, axis] * colour_step - wanted) <= rounding + sampling + colour_step - 1).all()


shapes = st.fixed_dictionaries(
    {
        "points": st.sampled_from([0, 1, 10, 1023]),
        "cameras": st.integers(0, 3),
        "size": st.tuples(st.integers(1, 256), st.integers(1, 256)),
        "pairs": st.integers(0, 300),
    }
)


@settings(max_examples=150)
@given(
    shapes,
    st.builds(
        AugmentSettings,
        crop=st.tuples(st.integers(1, 80), st.integers(1, 80)),
        train=st.booleans(),
        cuboid=st.sampled_from([0, 0.2, 1.0]),
        paper_cuboid=st.booleans(),
        min_pairs=st.sampled_from([0, 1, 64, 1024]),
    ),
    st.integers(0, 2**32 - 1),
)
def test_every_pair_keeps_its_colour_and_superpixel(shape, asked, seed):
    rng = np.random.default_rng(seed)
    before = make_frame(rng, **shape)
    drawn = draw(rng, before, asked)
    after = apply(before, drawn)
    check_pairs(before, after, drawn)

    # points: moved as one body, the cuboid's gone, labels beside them
    kept = after.points[:, 3].astype(int)
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(after.labels, before.labels[kept])
    np.testing.assert_allclose(
        np.linalg.norm(after.points[:, :2], axis=1), np.linalg.norm(before.points[kept, :2], axis=1), atol=1e-4
    )
    np.testing.assert_array_equal(after.points[:, 2], before.points[kept, 2])
    np.testing.assert_allclose(in_world(after), in_world(before)[kept], atol=1e-3)

    # the promised number of pairs
    survivors = before.pairs.select(np.isin(before.pairs.point, kept))
    counts = np.bincount(survivors.camera, minlength=shape["cameras"])
    if drawn.cuboid is not None and shape["cameras"]:
        assert (counts.sum() if asked.paper_cuboid else counts.min()) >= asked.min_pairs
    for i, box in enumerate(drawn.boxes):
        left = np.count_nonzero(after.pairs.camera == i)
        if box == (0, 0, *shape["size"]):
            assert left == counts[i]
        else:
            assert left > asked.min_pairs or left > 0.75 * counts[i]
    if not asked.train:
        assert np.array_equal(after.points, before.points) and len(after.pairs) == len(before.pairs)


def in_world(frame: Frame) -> np.ndarray:
    return frame.points[:, :3] @ frame.pose[:3, :3].T + frame.pose[:3, 3]


# The same on real frames


@pytest.fixture(params=["scene-0061", "scene-e7ef871f", "KITTI 08_000000"])
def real_frame(request, nuscenes_frames, shared) -> Frame:
    """Two nuScenes frames of six cameras, one of SemanticKITTI, with superpixels; intensities number the points."""
    if request.param.startswith("KITTI"):
        frame = SemanticKitti(shared("realdata", "semantickitti33"), "val").read(0, Needs(cameras="all", pose=True))
        for view in frame.cameras:
            view.superpixels = superpixels.compute(view.image, superpixels.SuperpixelSettings())
    else:
        frame = nuscenes_frames[request.param != "scene-0061"]
    points = frame.points.copy()
    points[:, 3] = np.arange(len(points))
    return replace(frame, points=points)


def test_every_pair_of_a_real_frame_stays_at_its_pixel(real_frame):
    rows, columns = real_frame.cameras[0].image.shape[:2]
    y, x = np.mgrid[:rows, :columns]
    image, ids = np.stack([y // 8, x // 8, 0 * x], 2).astype(np.uint8), (y * columns + x).astype(np.int32)
    views = [replace(view, image=image, superpixels=ids) for view in real_frame.cameras]
    before = replace(real_frame, cameras=views)
    for seed in range(3):
        drawn = draw(np.random.default_rng(seed), before, PUBLISHED)
        after = apply(before, drawn)
        assert set(drawn.boxes) != {(0, 0, rows, columns)} and len(after.pairs) > 1024 * len(views)
        check_pairs(before, after, drawn, colour_step=8)


def test_every_pair_of_a_real_frame_shows_its_colour_in_its_superpixel(real_frame):
    """Each colour lies between those around the pair's own pixel, as far as bilinear sampling reaches; so does each id.

    And most ids are the very ones: only at superpixels' borders may a coarser pixel carry a neighbour's.
    """
    pixel_of = {
        (point, camera): (row, column)
        for point, camera, row, column in zip(*vars(real_frame.pairs).values(), strict=True)
    }
    for seed in range(2):
        drawn = draw(np.random.default_rng(seed), real_frame, PUBLISHED)
        after = apply(real_frame, drawn)
        kept = after.points[after.pairs.point, 3].astype(int)
        was = np.array([pixel_of[key] for key in zip(kept, after.pairs.camera, strict=True)])
        for i, (old, new) in enumerate(zip(real_frame.cameras, after.cameras, strict=True)):
            here = after.pairs.camera == i
            row, column = after.pairs.row[here], after.pairs.column[here]
            scales = np.array(drawn.boxes[i][2:]) / PUBLISHED.crop
            window = tuple(2 * np.ceil(1.5 * scales + 1).astype(int) + 1)
            place = tuple(was[here].T)
            low, high = (f(old.image, (*window, 1))[place] for f in (minimum_filter, maximum_filter))
            shown = 255 * new.image[row, column]
            assert ((shown >= low - 1e-3) & (shown <= high + 1e-3)).all()
            assert np.abs(shown - old.image[place]).mean() < 0.5 * np.abs(shown - old.image[place][::-1]).mean()
            ids, own = new.superpixels[row, column], old.superpixels[place]
            assert (ids == own).mean() > 0.85
            around = sliding_window_view(np.pad(old.superpixels, [(w // 2,) * 2 for w in window], mode="edge"), window)
            assert (around[place] == ids[:, None, None]).any((1, 2)).all()


def test_the_frame_that_came_is_left_as_it_was():
    rng = np.random.default_rng(0)
    before, same = (make_frame(np.random.default_rng(1), 500, 2, (90, 160), 200) for _ in range(2))
    after = apply(before, draw(rng, before, AugmentSettings((40, 64), cuboid=1.0, min_pairs=1)))
    assert len(after.points) < len(before.points)
    for name in ("points", "labels", "pose"):
        np.testing.assert_array_equal(getattr(before, name), getattr(same, name))
    np.testing.assert_array_equal(pixels(before.pairs), pixels(same.pairs))
    np.testing.assert_array_equal(before.cameras[1].image, same.cameras[1].image)


def test_a_flipped_image_is_the_mirror_of_the_plain_one():
    before = make_frame(np.random.default_rng(1), 300, 1, (90, 160), 300)
    plain, flipped = (
        apply(before, Augmentation(crop=(40, 64), boxes=((10, 20, 60, 110),), mirrored=(m,))) for m in (False, True)
    )
    np.testing.assert_array_equal(flipped.cameras[0].image, plain.cameras[0].image[:, ::-1])
    np.testing.assert_array_equal(flipped.cameras[0].superpixels, plain.cameras[0].superpixels[:, ::-1])
    np.testing.assert_array_equal(flipped.pairs.column, 63 - plain.pairs.column)
    np.testing.assert_array_equal(flipped.pairs.row, plain.pairs.row)


# The distribution of what is drawn


def test_draws_are_spread_as_stated():
    """Angles over the circle, coins fair, boxes of every area and aspect; the same seed draws the same."""
    before = make_frame(np.random.default_rng(0), 400, 1, (225, 256), 400)
    wide = replace(PUBLISHED, crop=(112, 208), min_pairs=1)
    drawn = [draw(np.random.default_rng(seed), before, wide) for seed in range(400)]
    angles = np.sort([d.angle for d in drawn]) / (2 * math.pi)
    assert np.abs(angles - np.linspace(0, 1, 400)).max() < 0.1  # Kolmogorov-Smirnov, p < 0.001
    for coins in ([d.flip_x for d in drawn], [d.flip_y for d in drawn], [d.mirrored[0] for d in drawn]):
        assert 160 < sum(coins) < 240  # 4 standard deviations
    boxes = np.array([d.boxes[0] for d in drawn if d.boxes[0] != (0, 0, 225, 256)], float)
    top, left, rows, columns = boxes.T
    area, aspect = rows * columns / (225 * 256), columns / rows
    assert len(boxes) > 350 and 0.3 - 0.01 < area.min() < 0.33
    assert 14 / 9 - 0.02 < aspect.min() < 1.6 and 1.8 < aspect.max() < 17 / 9 + 0.02
    assert (top + rows <= 225).all() and (left + columns <= 256).all() and len(set(top)) > 50 and len(set(left)) > 20
    sides = [np.ptp(d.cuboid, axis=0)[2] / np.ptp(before.points[:, 2]) for d in drawn if d.cuboid is not None]
    assert len(sides) > 390 and max(sides) < 0.2 + 1e-6 and 0.08 < np.mean(sides) < 0.12
    again = draw(np.random.default_rng(7), before, wide)
    assert again.angle == drawn[7].angle and again.boxes == drawn[7].boxes
    assert np.array_equal(again.cuboid, drawn[7].cuboid) and drawn[7].angle != drawn[8].angle


def test_a_refused_cuboid_is_given_up_or_drawn_again():
    before = make_frame(np.random.default_rng(0), 100, 2, (90, 160), 100)
    far, near = int(np.abs(before.points[:, :3]).sum(1).argmax()), int(np.abs(before.points[:, :3]).sum(1).argmin())
    imposed = {"uniform": [2.0, 1e-6], "integers": [near, far]}  # first everything in reach, then one point alone
    strict = AugmentSettings(min_pairs=99)
    assert augment._draw_cuboid(Scripted(**imposed), before.points, before.pairs, 2, strict) is None
    paper = replace(strict, paper_cuboid=True)
    cuboid = augment._draw_cuboid(Scripted(**imposed), before.points, before.pairs, 2, paper)
    assert 0.5 * (cuboid[0] + cuboid[1]) == pytest.approx(before.points[far, :3], rel=1e-5)


def test_the_papers_cuboid_counts_the_pairs_of_all_images_together():
    before = make_frame(np.random.default_rng(0), 100, 2, (90, 160), 100)
    before.pairs = before.pairs.select((before.pairs.camera == 1) | (before.pairs.point < 10))
    imposed, asked = {"uniform": [1e-6], "integers": [0]}, AugmentSettings(min_pairs=50)  # takes one point
    assert augment._draw_cuboid(Scripted(**imposed), before.points, before.pairs, 2, asked) is None
    paper = replace(asked, paper_cuboid=True)
    assert augment._draw_cuboid(Scripted(**imposed), before.points, before.pairs, 2, paper) is not None


def test_a_crop_counts_only_the_pairs_that_the_cuboid_left():
    before = make_frame(np.random.default_rng(0), 100, 1, (90, 160), 100)
    before.points[:, :3] = np.random.default_rng(1).uniform(-20, 20, (100, 3))
    cut = 0
    for seed in range(300):
        drawn = draw(np.random.default_rng(seed), before, AugmentSettings((45, 80), cuboid=2.0, min_pairs=40))
        left, after = len(apply(before, replace(drawn, crop=None)).pairs), len(apply(before, drawn).pairs)
        assert after > 40 or after > 0.75 * left or drawn.boxes == ((0, 0, 90, 160),)
        cut += left < 80 and drawn.boxes != ((0, 0, 90, 160),)
    assert cut > 20  # enough cases in which it matters


@pytest.mark.parametrize("pairs", [0, 40])
def test_a_crop_that_cannot_succeed_ends_as_the_whole_image(pairs):
    """Without pairs no crop keeps enough of them; all pairs in opposite corners likewise."""
    before = make_frame(np.random.default_rng(0), 40, 1, (90, 160), pairs)
    corner = np.arange(pairs) % 2
    before.pairs = replace(before.pairs, row=89 * corner, column=159 * corner)
    for seed in range(20):
        drawn = draw(np.random.default_rng(seed), before, replace(PUBLISHED, cuboid=0.0))
        assert drawn.boxes == ((0, 0, 90, 160),)
        assert len(apply(before, drawn).pairs) == pairs


def test_draws_of_a_crop_are_bounded():
    """An image far too narrow for the aspect: every draw is too wide."""
    tall = make_frame(np.random.default_rng(0), 10, 1, (200, 10), 10)
    count = [0.9, math.log(14 / 9)] * DRAWS
    assert augment._draw_box(Scripted(count), (200, 10), tall.pairs, PUBLISHED) == (0, 0, 200, 10)


@pytest.mark.parametrize("points", [0, 1, 10, 1023])
def test_clouds_without_cameras(points):
    """What downstream does: rotation and flips, points and labels stay in their rows."""
    before = make_frame(np.random.default_rng(0), points, 0, (1, 1), 0)
    drawn = draw(np.random.default_rng(3), before, AugmentSettings(crop=None, cuboid=0.0))
    after = apply(before, drawn)
    c, s = math.cos(drawn.angle), math.sin(drawn.angle)
    x, y = before.points[:, 0], before.points[:, 1]
    sign_x, sign_y = (-1 if flip else 1 for flip in (drawn.flip_x, drawn.flip_y))
    expected = np.stack([sign_x * (c * x - s * y), sign_y * (s * x + c * y)], 1)
    np.testing.assert_allclose(after.points[:, :2], expected, atol=1e-4)
    np.testing.assert_array_equal(after.points[:, 2:], before.points[:, 2:])
    np.testing.assert_array_equal(after.labels, before.labels)
    assert drawn.cuboid is None and len(after.pairs) == 0


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_without_a_pose_all_else_is_the_same(seed, train):
    before = make_frame(np.random.default_rng(1), 100, 2, (90, 160), 50)
    drawn = draw(np.random.default_rng(seed), before, AugmentSettings((40, 64), train, min_pairs=10))
    after, without = apply(before, drawn), apply(replace(before, pose=None), drawn)
    assert without.pose is None
    np.testing.assert_array_equal(without.points, after.points)
    np.testing.assert_array_equal(pixels(without.pairs), pixels(after.pairs))


@settings(max_examples=40)
@given(st.floats(0.1, 0.9), st.floats(0.3, 3), st.integers(0, 2**32 - 1))
def test_crops_have_the_area_and_the_aspect_that_are_asked_for(area, aspect, seed):
    """KITTI's 192 x 608 crop need not stretch its images."""
    before = make_frame(np.random.default_rng(0), 400, 1, (200, 250), 400)
    asked = AugmentSettings((96, 304), cuboid=0.0, min_pairs=0, area=(area, area + 0.1), aspect=(aspect, aspect + 0.1))
    (box,) = draw(np.random.default_rng(seed), before, asked).boxes
    _, _, rows, columns = box
    if box != (0, 0, 200, 250):
        assert area - 0.02 < rows * columns / (200 * 250) < area + 0.12
        assert aspect * 0.97 < columns / rows < (aspect + 0.1) * 1.03


def test_without_a_crop_size_images_and_their_pairs_stay():
    before = make_frame(np.random.default_rng(0), 100, 2, (90, 160), 50)
    after = apply(before, draw(np.random.default_rng(0), before, AugmentSettings(crop=None, cuboid=0.0)))
    assert after.cameras == before.cameras
    np.testing.assert_array_equal(pixels(after.pairs), pixels(before.pairs))


def test_where_only_the_front_is_labelled_clouds_turn_little_and_are_mirrored_sideways_alone():
    frame = make_frame(np.random.default_rng(0), 40, 1, (22, 25), 40)
    front = AugmentSettings(crop=None, cuboid=0.0, rotation=(-0.5, 0.5), flip_x=False)
    drawn = [draw(np.random.default_rng(seed), frame, front) for seed in range(200)]
    angles = [d.angle for d in drawn]
    assert -0.5 <= min(angles) < -0.4 and 0.4 < max(angles) <= 0.5
    assert not any(d.flip_x for d in drawn) and 70 < sum(d.flip_y for d in drawn) < 130
    usual = [draw(np.random.default_rng(seed), frame, replace(front, flip_x=True)) for seed in range(200)]
    assert [d.flip_y for d in usual] == [d.flip_y for d in drawn]  # what else is drawn does not depend on it
