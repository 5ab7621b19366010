"""Which pixels make a superpixel: those of no superpixel, and ids that the cameras of a frame share."""

import pytest
import torch
import torch.nn.functional as F

from slidr.pooling import coarse_means, pool_superpixels
from tests.slidr.test_objective import random_pairs, tensors


def shared_means(pixels: torch.Tensor, superpixels, pairs, frame) -> list[torch.Tensor]:
    """Mean over all pixels of each superpixel that a pair hits, in all images of its frame; `pixels [I, C, H, W]`."""
    hit = superpixels[pairs.camera, pairs.row, pairs.column].tolist()
    occupied = sorted({(int(frame[c]), i) for c, i in zip(pairs.camera.tolist(), hit, strict=True) if i >= 0})
    inside = [(frame[:, None, None] == f) & (superpixels == i) for f, i in occupied]
    return [pixels.movedim(1, -1)[mask].mean(0) for mask in inside]


@pytest.mark.parametrize("frame", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("m", [0, 1, 60])
def test_superpixels_of_none_and_those_that_cameras_share(frame, m):
    """Values and gradients against the definition; a quarter of the pixels belongs to none."""
    torch.manual_seed(m)
    frame, size = torch.tensor(frame), (11, 13)
    features = torch.randn(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    points = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    superpixels, pairs = torch.randint(-1, 3, (4, *size)), random_pairs(m, 20, 4, size)
    shared = None if frame.unique().numel() == 4 else frame
    k, q = pool_superpixels(points, features, superpixels, pairs, shared)
    pixels = F.normalize(F.interpolate(features, size=size, mode="bilinear", align_corners=True), dim=1)
    wanted = shared_means(pixels, superpixels, pairs, frame)
    seen = superpixels[pairs.camera, pairs.row, pairs.column]
    names = torch.where(seen >= 0, frame[pairs.camera] * 3 + seen, -1)
    superpoints = [points[pairs.point[names == name]].mean(0) for name in names.unique() if name >= 0]
    assert len(k) == len(q) == len(wanted) == len(superpoints) and (m < 60 or len(k) > 2)
    if len(k):
        assert torch.allclose(k, torch.stack(superpoints)) and torch.allclose(q, torch.stack(wanted), atol=1e-9)
        weight = torch.randn_like(q)
        ours, theirs = (
            torch.autograd.grad((x * weight).sum(), features)[0] for x in (q, torch.stack(wanted))
        )  # fmt: skip
        assert torch.allclose(ours, theirs, atol=1e-7)
    coarse = superpixels[:, torch.arange(5) * 11 // 5][:, :, torch.arange(6) * 13 // 6]
    found = coarse_means(features, superpixels, pairs, shared)
    for mean, name in zip(found, [name for name in names.unique().tolist() if name >= 0], strict=True):
        cells = features.movedim(1, -1)[(frame[:, None, None] == name // 3) & (coarse == name % 3)]
        assert torch.allclose(mean, cells.sum(0) / max(len(cells), 1))


def test_a_superpixel_of_two_cameras_by_hand():
    """Two cameras of a frame: class 1 fills one pixel of the first, three of the second; only the first has a pair."""
    features = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]], [[[0.0, 0.0]], [[1.0, 1.0]]]])  # [2, 2, 1, 2]: east, north
    superpixels = torch.tensor([[[1, -1, -1, -1]], [[1, 1, 1, 0]]])
    pairs = tensors([0, 1, 2], [0, 0, 1], [0, 0, 0], [0, 1, 3])  # class 1; none; class 0
    points = torch.eye(3)
    k, q = pool_superpixels(points, features, superpixels, pairs, torch.tensor([0, 0]))
    assert torch.allclose(q, torch.tensor([[0.0, 1.0], [0.25, 0.75]])) and torch.equal(k, points[[2, 0]])
    k, q = pool_superpixels(points, features, superpixels, pairs)
    assert torch.allclose(q, torch.tensor([[1.0, 0.0], [0.0, 1.0]])) and torch.equal(k, points[[0, 2]])
