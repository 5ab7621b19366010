"""SLIC in torch: what its definition promises, on hand-made images; its agreement with scikit-image on a real one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2lab
from skimage.filters import gaussian
from skimage.measure import label

from benchmarks.superpixels import agreement, grid
from data import slic as module
from data.images import read_image
from data.slic import slic
from data.superpixels import SuperpixelSettings, compute


def tiles(rows: int, columns: int, side: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """An image of squares of far-apart colours, and the square `[H, W]` of each pixel."""
    tile = grid((rows * side, columns * side), (rows, columns))
    levels = np.stack(np.meshgrid(*[[0, 128, 255]] * 3), -1).reshape(-1, 3).astype(np.uint8)
    colours = np.random.default_rng(seed).permutation(levels)[: rows * columns]
    return torch.tensor(colours[tile]), tile


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8))


def assert_promises_hold(ids: torch.Tensor, segments: int) -> None:
    """Ids from 0 without gaps, by first pixel; each connected by edges; none but the first smaller than half a cell."""
    assert ids.dtype == torch.int32
    ids = ids.numpy()
    values, firsts, sizes = np.unique(ids, return_index=True, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(len(values)))
    assert (np.diff(firsts) > 0).all()
    assert label(ids + 1, connectivity=1).max() == len(values)
    side = max(1, round((ids.size / segments) ** 0.5))
    centres = [max(1, len(range(side // 2, n, side))) for n in ids.shape]
    assert (sizes[1:] >= int(0.5 * ids.size / (centres[0] * centres[1]))).all()


@pytest.mark.parametrize("rows, columns", [(2, 3), (4, 5)])
def test_sharp_borders_are_found_to_the_pixel(rows, columns):
    """Each superpixel is one square, where the grid that it starts on has other cells than the image has squares."""
    image, tile = tiles(rows, columns, side=24)
    ids = slic(image, segments=rows * columns * 4, compactness=1.0, sigma=0.0)
    assert_promises_hold(ids, rows * columns * 4)
    pairs = {(int(a), int(b)) for a, b in zip(ids.flatten(), tile.ravel(), strict=True)}
    assert len(pairs) == len(ids.unique()) >= rows * columns  # each lies in one square


def test_one_colour_gives_the_grid():
    """Squares about the centres, whatever the colour: 60 x 90 pixels in 24 cells of 15."""
    expected = torch.from_numpy(grid((60, 90), (4, 6))).int()
    for colour in (0, 77, 255):
        ids = slic(torch.full((60, 90, 3), colour, dtype=torch.uint8), segments=24, compactness=6.0, sigma=3.0)
        assert ids.equal(expected)


def test_a_coloured_line_leaves_no_superpixel_of_its_own():
    """Smaller than half a cell: it joins."""
    image = torch.full((60, 90, 3), 60, dtype=torch.uint8)
    image[30, 10:80] = 255
    ids = slic(image, segments=24, compactness=0.1, sigma=0.0)
    assert_promises_hold(ids, 24)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 60),
    st.sampled_from([0.01, 1.0, 20.0]),
    st.sampled_from([0.0, 0.75, 3.0]),
    st.integers(0, 2**32 - 1),
)
def test_promises_hold_for_every_image(size, segments, compactness, sigma, seed):
    """Noise has the most fragments. Sizes down to one pixel, more segments than pixels."""
    ids = slic(noise(seed, *size), segments, compactness, sigma)
    assert ids.shape == size
    assert_promises_hold(ids, segments)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (7, 300)])
def test_thin_images(size):
    assert_promises_hold(slic(noise(0, *size), 150, 6.0, 3.0), 150)


def test_a_batch_is_made_as_one_by_one_and_always_alike():
    batch = torch.stack([noise(0, 50, 50), tiles(5, 5, 10)[0], torch.zeros(50, 50, 3, dtype=torch.uint8)])
    together = slic(batch, 20, 6.0, 1.5)
    assert together.equal(torch.stack([slic(image, 20, 6.0, 1.5) for image in batch]))
    assert together.equal(slic(batch, 20, 6.0, 1.5)) and together.shape == (3, 50, 50)


def test_colours_and_blur_are_the_usual_ones():
    """CIELAB and the Gaussian as scikit-image has them; within the rounding of float32."""
    image = noise(1, 40, 60)
    image[0, 0], image[0, 1] = torch.tensor([0, 0, 0]), torch.tensor([255, 255, 255])  # stretched already
    lab = module._lab(image[None])
    np.testing.assert_allclose(lab[0].movedim(0, -1), rgb2lab(image.numpy() / 255), atol=5e-3)
    for sigma in (0.75, 3.0):
        expected = gaussian(lab[0].double().numpy(), sigma, mode="nearest", channel_axis=0)
        np.testing.assert_allclose(module._blurred(lab, sigma)[0], expected, atol=1e-4)


def test_a_pixel_goes_to_the_nearest_centre_within_two_cells():
    """The last assignment against its definition, pixel by pixel."""
    torch.manual_seed(0)
    pixels, centres = torch.rand(1, 6, 3, 4, 5, 5, dtype=torch.float64), torch.rand(1, 3, 4, 5, dtype=torch.float64)
    for r in range(3):
        for c in range(4):
            centres[0, r, c, 3:] += torch.tensor([r, c])
            pixels[0, 3, r, c], pixels[0, 4, r, c] = (
                v / 5 + n for v, n in zip(torch.meshgrid(*[torch.arange(5.0)] * 2, indexing="ij"), (r, c), strict=True)
            )
    centres[0, 1, 1, 3] += 3  # it has gone far
    pixels[:, 5] = 1
    beyond = torch.zeros(3, 4, dtype=torch.bool)
    beyond[2, 3] = True
    cells = pixels.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    nearest = torch.cat([d.min(1).indices for _, d in module._distances(cells, centres, beyond)]).view(3, 4, 25)
    for r in range(3):
        for c in range(4):
            for i, f in enumerate(pixels[0, :5, r, c].flatten(1).T):
                allowed = {
                    (p, q): float((f - centres[0, p, q]).square().sum())
                    for p in range(3)
                    for q in range(4)
                    if max(abs(p - r), abs(q - c)) <= 2 and not beyond[p, q]
                    if (f[3:] - centres[0, p, q, 3:]).abs().max() <= 2
                }
                k = int(nearest[r, c, i])
                assert (k // 5 - 2 + r, k % 5 - 2 + c) == min(allowed, key=allowed.get)


def test_small_regions_join_where_they_are_met_furthest():
    """By hand. The 2s begin beside 1s and end beside 0s and 3s, of which the 3s begin later: they join the 0s.

    The 3s end beside 2s, so they go with them.
    """
    ids = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 2, 1], [0, 0, 2, 3], [0, 0, 2, 3]]])
    assert module._connected(ids, least=1).equal(ids)
    assert module._connected(ids, least=3).tolist()[0][2:] == [[0, 0, 2, 1], [0, 0, 2, 2], [0, 0, 2, 2]]
    assert module._connected(ids, least=4).tolist()[0][2:] == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    ids[0, 3:] = torch.tensor([[0, 0, 2, 1], [0, 0, 2, 2]])  # now the 2s end in a corner, below a 1
    assert module._connected(ids, least=5).tolist()[0][2:] == [[0, 0, 1, 1]] * 3
    apart = torch.tensor([[[3, 3, 0, 3, 3]], [[5, 5, 5, 5, 5]]])  # equal ids lie apart; a second image counts anew
    assert module._connected(apart, least=1).tolist() == [[[0, 0, 1, 2, 2]], [[0] * 5]]
    assert module._connected(apart, least=2).tolist() == [[[0, 0, 0, 1, 1]], [[0] * 5]]


def test_it_agrees_with_scikit_image_on_a_real_image(shared):
    """Far beyond a plain grid of as many cells; the benchmark has the figures of all images."""
    image = read_image(sorted(shared("realdata", "nuscenes2", "samples", "CAM_FRONT").glob("*.jpg"))[0], shrink=2)
    settings_of = {kind: SuperpixelSettings(kind, shrink=2) for kind in ("slic", "slic_torch")}
    truth, ours = (compute(image, s) for s in settings_of.values())
    plain = grid(truth.shape, (9, 12))
    (found, wanted, kept, _, pixels), by_chance = agreement(ours, truth), agreement(plain, truth)
    assert found / wanted > 0.75 > 0.3 > by_chance[0] / wanted
    assert kept / pixels > 0.85 > 0.65 > by_chance[2] / pixels


def test_the_figures_of_agreement_by_hand():
    truth, ids = np.array([[0, 0, 1, 1]] * 2), np.array([[0, 1, 1, 1]] * 2)
    found, wanted, kept, spilt, pixels = agreement(ids, truth)
    assert (found, wanted, pixels) == (4, 4, 8)  # two columns of boundary each, one pixel apart
    assert (kept, spilt) == (2 + 4, min(2, 0) + min(2, 4) + min(4, 2))
    assert agreement(truth, truth).tolist() == [4, 4, 8, 0, 8]
    far = np.repeat([[0, 1]], [1, 7], 1), np.repeat([[0, 1]], [5, 3], 1)  # boundaries at columns 0, 1 and 4, 5
    assert agreement(*far)[:2].tolist() == [0, 2]
