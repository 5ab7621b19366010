"""PointNet++ and its searches, each against a naive twin."""

import numpy as np
import pytest
import torch
from torch import nn

from slidr.networks import pointnet2
from slidr.networks.pointnet2 import PointNet2, SetAbstraction, ball_query, farthest_points, interpolate, three_nearest
from slidr.training import distributed

SIZES = [1, 2, 3, 7, 33, 200]


def clouds(points: int, count: int = 3, seed: int = 0) -> torch.Tensor:
    """Some, whose later half (if there are many points) repeats earlier points."""
    xyz = torch.from_numpy(np.random.default_rng(seed).uniform(-3, 3, (count, points, 3)).astype(np.float32))
    if points > 30:
        xyz[:, points // 2 :] = xyz[:, : points - points // 2]
    return xyz


@pytest.fixture(params=[1, 500, 2**20], ids="distances at a time: {}".format)
def chunks(request, monkeypatch):
    monkeypatch.setitem(pointnet2.DISTANCES, "cpu", request.param)


def naive_farthest(xyz: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        squared = ((xyz[:, None] - xyz[chosen]) ** 2).sum(2)
        chosen.append(int(squared.min(1).argmax()))
    return chosen


@pytest.mark.parametrize("points", SIZES)
@pytest.mark.parametrize("count", [1, 2, 20, 110, 500])
def test_farthest_points(points, count):
    xyz = clouds(points)
    rows = farthest_points(xyz, count)
    assert rows.shape == (3, min(count, points)) and rows.dtype == torch.int64
    for cloud, found in zip(xyz, rows, strict=True):
        if count >= points:
            assert found.tolist() == list(range(points))
        else:
            assert found.tolist() == naive_farthest(cloud.numpy(), count)


def test_more_points_than_places():
    assert farthest_points(torch.ones(2, 9, 3), 4).tolist() == [[0, 0, 0, 0]] * 2


def naive_ball(xyz: np.ndarray, centre: np.ndarray, radius: float, count: int) -> list[int]:
    inside = [i for i, p in enumerate(xyz) if ((p - centre) ** 2).sum() < radius**2][:count]
    return inside + (inside or [0])[:1] * (count - len(inside))


@pytest.mark.parametrize("points", SIZES)
@pytest.mark.parametrize("centres", [1, 5])
def test_ball_query(points, centres, chunks):
    xyz, middle = clouds(points), clouds(centres, seed=1)
    balls = [(0.2, 4), (2.0, 16), (20.0, 3)]
    found = ball_query(xyz, middle, balls)
    for (radius, count), rows in zip(balls, found, strict=True):
        assert rows.shape == (3, centres, count) and rows.dtype == torch.int64
        for b in range(3):
            expected = [naive_ball(xyz[b].numpy(), c, radius, count) for c in middle[b].numpy()]
            assert rows[b].tolist() == expected


def test_the_border_of_a_ball_is_outside():
    xyz = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [0, 0.25, 0]]])
    (rows,) = ball_query(xyz, xyz[:, :1], [(0.5, 3)])
    assert rows.tolist() == [[[0, 2, 0]]]


def test_far_from_the_origin_distances_stay_exact():
    """Squares of coordinates would cancel: 100 m from the sensor float32 has 8e-4 of their squares."""
    xyz = torch.tensor([[[100.0, 100, 0], [100.09, 100, 0], [100.11, 100, 0]]])
    (rows,) = ball_query(xyz, xyz[:, :1], [(0.1, 2)])
    assert rows.tolist() == [[[0, 1]]]
    assert three_nearest(xyz, xyz)[0][0, 0].tolist() == pytest.approx([0, 0.09, 0.11], abs=1e-5)


@pytest.mark.parametrize("points", SIZES)
def test_three_nearest_and_interpolation(points, chunks):
    xyz, middle = clouds(points), clouds(6, seed=1)
    middle[:, 0] = xyz[:, 0]  # on a point
    distances, rows = three_nearest(xyz, middle)
    features = torch.rand(3, points, 5, dtype=torch.float64, requires_grad=True)
    twin = features.detach().clone().requires_grad_()
    mixed, expected = interpolate(features, xyz, middle), []
    for b in range(3):
        for m in range(6):
            distance = (xyz[b] - middle[b, m]).norm(dim=1)
            order = distance.argsort(stable=True)[:3]
            assert torch.allclose(distances[b, m], distance[order], atol=1e-6)
            assert torch.allclose(distance[rows[b, m]], distances[b, m], atol=1e-6)  # of doubles, any
            weights = 1 / (distance[rows[b, m]] + pointnet2.EPS)
            expected.append((weights / weights.sum()).double() @ twin[b, rows[b, m]])
    expected = torch.stack(expected).view(3, 6, 5)
    assert torch.allclose(mixed, expected, atol=1e-5)
    weight = torch.rand_like(expected)
    (mixed * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(features.grad, twin.grad, atol=1e-5)


@pytest.mark.parametrize("points", [1, 5, 60])
def test_a_level_down(points):
    """Output and gradients against loops over centres and neighbours, with batch norm over all of them."""
    torch.manual_seed(0)
    level = SetAbstraction(20, ((0.8, 4, (6, 8)), (4.0, 5, (7,))), 2).double()
    xyz, features = clouds(points), torch.rand(3, points, 2, dtype=torch.float64, requires_grad=True)
    twin = features.detach().clone().requires_grad_()
    centres, out = level(xyz.double(), features)
    assert out.shape == (3, min(20, points), 15)
    expected = []
    for radius, count, layers in ((0.8, 4, level.scales[0]), (4.0, 5, level.scales[1])):
        groups = []
        for b in range(3):
            for c in range(centres.shape[1]):
                rows = naive_ball(xyz[b].double().numpy(), centres[b, c].numpy(), radius, count)
                groups.append(torch.cat((xyz[b].double()[rows] - centres[b, c], twin[b, rows]), 1))
        x = torch.cat(groups)
        for layer in layers:
            x = x @ layer.linear.weight.T
            mean, variance = x.mean(0), x.var(0, unbiased=False)
            x = torch.relu((x - mean) / (variance + 1e-5).sqrt() * layer.norm.bn.weight + layer.norm.bn.bias)
        expected.append(x.view(len(groups), count, -1).max(1).values.view(3, -1, x.shape[1]))
    expected = torch.cat(expected, -1)
    assert torch.allclose(out, expected, atol=1e-6)
    weight, parameters = torch.rand_like(out), list(level.parameters())
    gradients = torch.autograd.grad((out * weight).sum(), [features, *parameters])
    others = torch.autograd.grad((expected * weight).sum(), [twin, *parameters])
    for name, ours, theirs in zip(["input", *dict(level.named_parameters())], gradients, others, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6), name


def test_the_network():
    torch.manual_seed(0)
    network = PointNet2()
    assert sum(p.numel() for p in network.parameters()) == 3_007_632
    xyz, features = clouds(300, 2), torch.rand(2, 300, 1)
    out = network(xyz, features)
    assert out.shape == (2, 300, PointNet2.channels)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    together = network(xyz, features)
    for b in range(2):
        assert torch.allclose(together[b : b + 1], network(xyz[b : b + 1], features[b : b + 1]), atol=1e-5)


def test_one_cloud_of_one_point():
    network = PointNet2()
    out = network(torch.zeros(1, 1, 3), torch.ones(1, 1, 1))
    assert out.shape == (1, 1, 128) and out.isfinite().all()


def test_several_processes_can_share_its_batch_norms():
    network = PointNet2()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(distributed.running_statistics(network)) == 3 * len(norms) == 3 * 32
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in network.modules()) == 32
    assert network.eval()(torch.zeros(1, 4, 3), torch.ones(1, 4, 1)).shape == (1, 4, 128)
