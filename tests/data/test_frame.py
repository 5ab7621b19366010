"""Pairs, collate and Batch: what belonged together before still does afterwards."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.files import InputError
from data.frame import Batch, CameraView, Frame, Pairs, collate

ROWS, COLUMNS = 3, 4


def make_frame(name, n_points, n_cameras, n_pairs, rng, labels=True, superpixels=True):
    """A frame of random numbers; a pair may only exist where there are points and cameras."""
    cameras = [
        CameraView(
            f"camera {c}",
            f"{name}_{c}",
            rng.integers(0, 256, (ROWS, COLUMNS, 3), np.uint8),
            rng.integers(0, 9, (ROWS, COLUMNS)).astype(np.int32) if superpixels else None,
        )
        for c in range(n_cameras)
    ]
    n_pairs = n_pairs if n_points and n_cameras else 0
    limits = (max(n_points, 1), max(n_cameras, 1), ROWS, COLUMNS)
    return Frame(
        id=name,
        points=rng.normal(size=(n_points, 4)).astype(np.float32),
        labels=rng.integers(0, 17, n_points).astype(np.uint8) if labels else None,
        cameras=cameras,
        pairs=Pairs(*(rng.integers(0, limit, n_pairs) for limit in limits)),
    )


shapes = st.lists(
    st.tuples(st.sampled_from([0, 1, 5, 1023]), st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=4
)


@settings(max_examples=50, deadline=None)
@given(shapes, st.integers(0, 2**32 - 1))
def test_collate_keeps_every_pair_together(sizes, seed):
    rng = np.random.default_rng(seed)
    frames = [make_frame(f"f{i}", *size, rng) for i, size in enumerate(sizes)]
    batch = collate(frames, intensity_offset=1.0)

    assert batch.ids == [f.id for f in frames]
    expected = []  # of each pair: its point, its pixel, its superpixel
    for f in frames:
        for point, camera, row, column in zip(f.pairs.point, f.pairs.camera, f.pairs.row, f.pairs.column, strict=True):
            view = f.cameras[camera]
            expected.append((f.points[point], view.image[row, column] / 255, view.superpixels[row, column]))
    pairs = batch.pairs
    assert len(pairs) == len(expected)
    if expected:
        points, pixels, superpixels = map(np.array, zip(*expected, strict=True))
        np.testing.assert_array_equal(batch.points[pairs.point], points)
        np.testing.assert_allclose(batch.images[pairs.camera, :, pairs.row, pairs.column], pixels, atol=1e-6)
        np.testing.assert_array_equal(batch.superpixels[pairs.camera, pairs.row, pairs.column], superpixels)

    assert batch.features.shape == (len(batch.points), 1)
    torch.testing.assert_close(batch.features[:, 0], batch.points[:, 3] + 1.0, rtol=0, atol=0)
    for i, f in enumerate(frames):
        rows = batch.batch_index == i
        np.testing.assert_array_equal(batch.points[rows], f.points)
        np.testing.assert_array_equal(batch.labels[rows], f.labels)
    if any(f.cameras for f in frames):
        assert batch.images.shape == (sum(len(f.cameras) for f in frames), 3, ROWS, COLUMNS)
    else:
        assert batch.images is None and batch.superpixels is None


def test_types():
    batch = collate([make_frame("a", 5, 2, 7, np.random.default_rng(0))])
    assert batch.points.dtype == batch.features.dtype == batch.images.dtype == torch.float32
    indices = (
        batch.batch_index,
        batch.labels,
        batch.superpixels,
        *(getattr(batch.pairs, f.name) for f in fields(Pairs)),
    )
    assert {values.dtype for values in indices} == {torch.int64}


def test_augmented_images_are_taken_as_they_are():
    frame = make_frame("a", 1, 1, 0, np.random.default_rng(0))
    frame.cameras[0].image = np.linspace(0, 1, ROWS * COLUMNS * 3, dtype=np.float32).reshape(ROWS, COLUMNS, 3)
    np.testing.assert_array_equal(collate([frame]).images[0].permute(1, 2, 0), frame.cameras[0].image)


def test_labels_and_superpixels_only_if_all_have_them():
    rng = np.random.default_rng(0)
    full = make_frame("a", 5, 1, 2, rng)
    assert collate([full, make_frame("b", 5, 1, 2, rng, labels=False)]).labels is None
    assert collate([full, make_frame("b", 5, 1, 2, rng, superpixels=False)]).superpixels is None
    assert collate([full, make_frame("b", 5, 0, 0, rng)]).superpixels.shape == (1, ROWS, COLUMNS)


def test_images_of_two_sizes_are_an_input_error():
    rng = np.random.default_rng(0)
    small, large = make_frame("a", 1, 1, 0, rng), make_frame("b", 1, 1, 0, rng)
    large.cameras[0].image = np.zeros((ROWS + 1, COLUMNS, 3), np.uint8)
    with pytest.raises(InputError, match=r"sizes \[\(3, 4\), \(4, 4\)\]: set a crop size"):
        collate([small, large])


def test_a_batch_moves_whole():
    batch = collate([make_frame("a", 5, 2, 7, np.random.default_rng(0))])
    moved = batch.to("meta")
    for f in fields(Batch):
        before, after = getattr(batch, f.name), getattr(moved, f.name)
        if isinstance(before, torch.Tensor):
            assert after.device.type == "meta" and after.shape == before.shape and before.device.type == "cpu"
    assert all(getattr(moved.pairs, f.name).device.type == "meta" for f in fields(Pairs))
    assert moved.ids == ["a"]


def test_pairs():
    pairs = Pairs(*(np.arange(5) + 10 * i for i in range(4)))
    by_mask, by_index = pairs.select(np.arange(5) % 2 == 1), pairs.select([1, 3])
    for chosen in (by_mask, by_index):
        assert [getattr(chosen, f.name).tolist() for f in fields(Pairs)] == [[1, 3], [11, 13], [21, 23], [31, 33]]
    joined = Pairs.concatenate([by_mask, Pairs.empty(), pairs])
    assert joined.column.tolist() == [31, 33, 30, 31, 32, 33, 34]
    assert len(Pairs.concatenate([])) == len(Pairs.empty()) == 0
    assert Pairs.concatenate([]).point.dtype == np.int64
