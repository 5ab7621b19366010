"""Targets and losses equal naive twins, and decoding the targets gives the boxes back."""

import math

import numpy as np
import pytest
import torch

from data.boxes import Boxes
from slidr.networks.detector import DetectorSpec, decode
from slidr.tasks.detection.targets import (
    REGRESSION_WEIGHT,
    encode,
    focal_loss,
    gaussian_radius,
    regression_loss,
)

SPEC = DetectorSpec(area=(-4.0, -6.0, 8.0, 6.4), cell=0.5, bev_channels=8, min_score=0.1, most_boxes=50)
CLASSES = 3


def random_boxes(count: int, seed: int = 0, spread: float = 9.0) -> tuple[Boxes, torch.Tensor]:
    """Boxes around the grid, some outside, and the frame of each of two."""
    rng = np.random.default_rng(seed)
    centre = np.column_stack((rng.uniform(-spread, spread, (count, 2)), rng.uniform(-2, 2, count)))
    size, yaw = rng.uniform(0.3, 6, (count, 3)), rng.uniform(-math.pi, math.pi, count)
    boxes = Boxes.of(centre, size, yaw, rng.integers(0, CLASSES, count), np.ones(count))
    return boxes.tensors(), torch.from_numpy(rng.integers(0, 2, count))


def naive_radius(length: float, width: float, overlap: float = 0.1) -> int:
    """CornerNet's three cases, each the root that the published code takes."""

    def root(a, b, c):
        return (b + math.sqrt(b * b - 4 * a * c)) / 2

    first = root(1, length + width, length * width * (1 - overlap) / (1 + overlap))
    second = root(4, 2 * (length + width), (1 - overlap) * length * width)
    third = root(4 * overlap, -2 * overlap * (length + width), (overlap - 1) * length * width)
    return max(2, int(min(first, second, third)))


def naive_heat(boxes: Boxes, frame: torch.Tensor, frames: int, spec: DetectorSpec) -> np.ndarray:
    rows, columns = spec.shape
    heat = np.zeros((frames, CLASSES, rows, columns))
    for k in range(len(boxes)):
        x, y = ((float(boxes.centre[k, i]) - spec.area[i]) / spec.cell for i in range(2))
        if not (0 <= x < rows and 0 <= y < columns):
            continue
        radius = naive_radius(*(float(s) / spec.cell for s in boxes.size[k, :2]))
        sigma = (2 * radius + 1) / 6
        for i in range(max(0, int(x) - radius), min(rows, int(x) + radius + 1)):
            for j in range(max(0, int(y) - radius), min(columns, int(y) + radius + 1)):
                value = math.exp(-((i - int(x)) ** 2 + (j - int(y)) ** 2) / (2 * sigma**2))
                at = int(frame[k]), int(boxes.label[k]), i, j
                heat[at] = max(heat[at], value)
    return heat


@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_targets_are_their_naive_twin(count):
    boxes, frame = random_boxes(count)
    found = encode(boxes, frame, 2, CLASSES, SPEC)
    assert found.heat.shape == (2, CLASSES, 24, 25) and found.heat.dtype == torch.float32
    assert np.allclose(found.heat, naive_heat(boxes, frame, 2, SPEC), atol=1e-6)
    x, y = boxes.centre[:, 0], boxes.centre[:, 1]
    there = (x >= -4) & (x < 8) & (y >= -6) & (y < 6.5)  # the last cell ends beyond the area
    assert len(found.cell) == int(there.sum()) and (count < 60 or 0 < len(found.cell) < 60)
    assert torch.equal(found.frame, frame[there]) and torch.equal(found.label, boxes.label[there])
    assert bool((found.heat[found.frame, found.label, found.cell[:, 0], found.cell[:, 1]] == 1).all())


def test_radii_are_those_of_the_definition():
    sizes = np.random.default_rng(1).uniform(0.2, 40, (200, 2))
    found = gaussian_radius(torch.from_numpy(sizes))
    assert found.tolist() == [naive_radius(*size) for size in sizes] and found.max() > 5 and found.min() == 2
    assert gaussian_radius(torch.tensor([[1e6, 1e6]])).tolist() == [64]  # a mistaken annotation


@pytest.mark.parametrize("count", [0, 1, 40])
def test_losses_and_their_gradients_are_their_naive_twins(count):
    boxes, frame = random_boxes(count, seed=2)
    targets = encode(boxes, frame, 2, CLASSES, SPEC)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(targets.heat.shape, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 8, *targets.heat.shape[2:], generator=generator, dtype=torch.float64)

    def naive(logits, maps):
        p, heat = logits.sigmoid(), targets.heat.double()
        focal = -((1 - heat) ** 4 * p**2 * (1 - p).log()).sum()
        l1 = logits.new_zeros(())
        for k in range(len(targets.cell)):
            f, c, (i, j) = int(targets.frame[k]), int(targets.label[k]), targets.cell[k].tolist()
            focal = focal - (1 - p[f, c, i, j]) ** 2 * p[f, c, i, j].log()
            for d in range(8):
                l1 = l1 + abs(maps[f, d, i, j] - float(targets.regression[k, d]))
        boxes = max(1, len(targets.cell))
        return focal / boxes + REGRESSION_WEIGHT * l1 / boxes

    a = [t.clone().requires_grad_() for t in (logits, maps)]
    b = [t.clone().requires_grad_() for t in (logits, maps)]
    ours = focal_loss(a[0], targets) + REGRESSION_WEIGHT * regression_loss(a[1], targets)
    theirs = naive(*b) + 0 * b[1].sum()
    ours.backward()
    theirs.backward()
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert all(torch.allclose(x.grad, y.grad, atol=1e-9) for x, y in zip(a, b, strict=True))
    large = focal_loss(100 * logits.float(), targets)  # no overflow far from the decision
    assert bool(large.isfinite())


def dense(targets) -> torch.Tensor:
    """Maps that say what the targets ask for; of boxes in one cell the last."""
    maps = torch.zeros(len(targets.heat), 8, *targets.heat.shape[2:])
    for k, (i, j) in enumerate(targets.cell.tolist()):
        maps[targets.frame[k], :, i, j] = targets.regression[k]
    return maps


def spread_boxes() -> tuple[Boxes, torch.Tensor]:
    """Boxes, none in the 3 x 3 around another of its class and frame."""
    boxes, frame = random_boxes(60, seed=4)
    cell = SPEC.places(boxes.centre[:, :2]).long()
    kept = [k for k in range(60) if bool(SPEC.inside(SPEC.places(boxes.centre[k : k + 1, :2])))]
    alone = []
    for k in kept:
        if all(int((cell[k] - cell[other]).abs().max()) > 1 for other in alone):
            alone.append(k)
    return boxes.select(alone), frame[alone]


def test_decoding_the_targets_gives_the_boxes_back():
    boxes, frame = spread_boxes()
    targets = encode(boxes, frame, 3, CLASSES, SPEC)  # frame 2 has none
    found = decode(targets.heat, dense(targets), SPEC)
    assert len(found) == 3 and len(found[2].boxes) == 0 and len(found[2].score) == 0
    for i in range(2):
        truth, ours = boxes.select(frame == i).numpy(), found[i].boxes
        best = np.flatnonzero(found[i].score == 1)
        assert len(truth) == len(best) > 5
        order = [np.abs(ours.centre[best] - centre).sum(1).argmin() for centre in truth.centre]
        ours = ours.select(best[order])
        assert np.allclose(ours.centre, truth.centre, atol=1e-5) and np.allclose(ours.size, truth.size, rtol=1e-5)
        assert np.allclose(np.exp(1j * ours.yaw), np.exp(1j * truth.yaw), atol=1e-5)
        assert np.array_equal(ours.label, truth.label)
        assert np.all(np.diff(found[i].score) <= 0)  # the best first


def test_two_boxes_in_one_cell_are_both_asked_for():
    centre = [[0.1, 0.1, 0.0], [0.3, 0.3, 1.0]]
    boxes = Boxes.of(centre, [[2, 1, 1], [4, 2, 2]], [0, 1], [0, 1]).tensors()
    targets = encode(boxes, torch.zeros(2, dtype=torch.int64), 1, CLASSES, SPEC)
    assert torch.equal(targets.cell[0], targets.cell[1]) and len(targets.regression) == 2
    found = decode(targets.heat, dense(targets), SPEC)[0]  # a cell has one set of numbers, whatever the classes in it
    assert sorted(found.boxes.label[found.score == 1]) == [0, 1]
    assert np.allclose(found.boxes.centre[found.score == 1], [centre[1]] * 2, atol=1e-6)


def test_what_is_decoded_is_bounded():
    heat = torch.rand(1, CLASSES, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    maps = torch.full((1, 8, *SPEC.shape), 1e6)  # an untrained network may say anything
    few = SPEC.model_copy(update={"most_boxes": 7, "min_score": 0.5})
    (found,) = decode(heat, maps, few)
    assert len(found.score) == 7 and found.score.min() >= 0.5 and np.isfinite(found.boxes.size).all()
    naive = [
        float(heat[0, c, i, j])
        for c in range(CLASSES) for i in range(24) for j in range(25)
        if heat[0, c, i, j] == heat[0, c, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].max()
    ]  # fmt: skip
    assert np.allclose(found.score, sorted(naive)[::-1][:7])
    assert len(decode(torch.zeros_like(heat), maps, SPEC.model_copy(update={"min_score": 0.0}))[0].score) == 0


def test_a_box_of_the_other_end_of_the_area():
    """The borders belong to the cell that begins there; beyond the last cell there is none."""
    centre = [[-4, -6, 0], [8, 0, 0], [7.99, 6.39, 0], [0, 6.49, 0], [0, 6.5, 0], [math.nan, 0, 0]]
    boxes = Boxes.of(centre, np.ones((6, 3)), np.zeros(6), np.zeros(6)).tensors()
    targets = encode(boxes, torch.zeros(6, dtype=torch.int64), 1, CLASSES, SPEC)
    assert targets.cell.tolist() == [[0, 0], [23, 24], [8, 24]]
