"""Points pooled into a bird's-eye grid equal a naive loop; the network's frames do not see each other."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.frame import Frame, collate
from slidr.networks.detector import BirdsEyeHead, Detector, DetectorSpec, pool_to_grid
from slidr.networks.student import Student, StudentSpec

SPEC = DetectorSpec(area=(-5.0, -5.0, 6.0, 4.0), cell=1.0, bev_channels=8, min_score=0.1, most_boxes=50)
STUDENT = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.5, 5.0, 0.5))


def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(Student(STUDENT, None, 0.1), ("car", "van"), SPEC)


def cloud(points: int, seed: int = 0, reach: float = 8.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack((rng.uniform(-reach, reach, (points, 3)), rng.random(points))).astype(np.float32)


@pytest.mark.parametrize("points", [0, 1, 300])
def test_pooling_is_a_loop_over_the_points(points):
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(points, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    frame = torch.randint(0, 3, (points,), generator=generator)
    cells = torch.randint(0, 4, (points, 2), generator=generator)
    grid = pool_to_grid(features, frame, cells, (3, 4, 6))
    assert grid.shape == (3, 5, 4, 6)
    naive, winner = np.zeros((3, 5, 4, 6)), {}
    for n in range(points):
        for c in range(5):
            at = int(frame[n]), c, *cells[n].tolist()
            if float(features[n, c].detach()) > naive[at]:
                naive[at], winner[at] = float(features[n, c].detach()), (n, c)
    assert np.array_equal(grid.detach().numpy(), naive)
    weight = torch.rand(grid.shape, generator=generator, dtype=torch.float64)
    (grid * weight).sum().backward()
    gradient = np.zeros((points, 5))
    for at, place in winner.items():  # the largest point alone has a gradient
        gradient[place] = weight[at]
    assert np.allclose(features.grad.numpy(), gradient)


def test_the_grid_takes_the_points_inside_the_area_alone():
    head = BirdsEyeHead(4, 2, SPEC)
    points = torch.tensor([[-5.0, -5, 1], [5.99, 3.99, 1], [6, 0, 1], [0, 4, 1], [0, -5.1, 1], [float("nan")] * 3])
    features = torch.rand(6, 4)
    grid = head.grid(features, points, torch.zeros(6, dtype=torch.int64), 1)
    full = (grid[0] > 0).any(0).nonzero().tolist()
    assert full == [[0, 0], [10, 8]]
    inputs = torch.cat((features[1], torch.tensor([0.99, 0.99, 1.0])))  # place in the cell, height
    assert torch.allclose(grid[0, :, 10, 8], head.point(inputs), atol=1e-4)


def test_a_frame_is_its_own_whatever_else_is_in_the_batch():
    network = detector().eval()
    frames = [Frame("a", cloud(200)), Frame("none", cloud(0)), Frame("b", cloud(150, 1)), Frame("far", cloud(9) + 50)]
    with torch.no_grad():
        heat, regression = network(collate(frames))
        assert heat.shape == (4, 2, 11, 9) and regression.shape == (4, 8, 11, 9)
        alone, _ = network(collate([frames[2]]))
    assert torch.allclose(heat[2], alone[0], atol=1e-5) and not torch.allclose(heat[0], alone[0], atol=1e-2)
    assert torch.allclose(heat[1], heat[3], atol=1e-6)  # nothing in either grid


def test_an_untrained_network_finds_little():
    with torch.no_grad():
        heat, _ = detector().eval()(collate([Frame("a", cloud(300))]))
    assert 0.001 < float(heat.sigmoid().mean()) < 0.05


def test_every_parameter_learns():
    network = detector()
    heat, regression = network(collate([Frame("a", cloud(300)), Frame("b", cloud(200, 1))]))
    (heat.square().mean() + regression.square().mean()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert sum(bool((p.grad != 0).any()) for p in network.parameters()) == len(list(network.parameters()))


def test_a_grid_has_a_size():
    assert SPEC.shape == (11, 9)
    assert SPEC.model_copy(update={"area": (0, -40, 70.4, 40), "cell": 0.4}).shape == (176, 200)
    for changes in ({"cell": 1e-9}, {"area": (5, 0, 5, 1)}, {"area": (0, 0, float("inf"), 1)}):
        with pytest.raises(ValidationError):
            DetectorSpec(**SPEC.model_dump() | changes)
