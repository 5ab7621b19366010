"""DepthContrast's step against a twin in numpy, and what its settings change."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.datasets import find_dataset
from data.samples.views import Views, ViewSettings
from slidr import config
from slidr.methods.depthcontrast import DepthContrast
from slidr.training import make_optimizer
from tests.data.test_views import Scans

SMALL = {
    "dataset": "synthetic", "architecture": "res16unet14c", "width": 0.25, "voxel_size": [0.8, 3.0, 0.5],
    "points": 40, "queue": 7, "encoder_momentum": 0.8, "lr": 0.05,
}  # fmt: skip


def made(**values) -> DepthContrast:
    torch.manual_seed(0)
    return DepthContrast(config.validate(DepthContrast.Settings, SMALL | values), find_dataset("synthetic"))


def batches(method: DepthContrast, *sizes: int) -> list:
    scans = Scans(*range(100, 100 + sum(sizes)))
    sample, first = method.sample(scans, True), 0
    for size in sizes:
        items = [sample.draw(first + i, np.random.default_rng(first + i))[0] for i in range(size)]
        yield sample.collate(items)
        first += size


def numpy_loss(seen: dict, queues: dict, temperature: float, cross: bool) -> float:
    """Four cross-entropies over [positive | queue], the target is column 0."""

    def term(query: str, key: str) -> float:
        q, positive, negatives = seen[query], seen[key], queues[key]
        logits = np.concatenate([np.sum(q * positive, 1, keepdims=True), q @ negatives.T], 1) / temperature
        logits -= logits.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0]))

    within = term("point", "slow_point") + term("voxel", "slow_voxel")
    if not cross:
        return within
    return 0.5 * (within + term("point", "slow_voxel") + term("voxel", "slow_point"))


@pytest.mark.parametrize("cross", [True, False])
def test_three_steps_against_a_twin_in_numpy(cross):
    """Losses, queues and momentum networks; the queue of 7 wraps, the last batch is smaller."""
    method = made(cross=cross).train()
    seen = {}
    for name in ("point", "voxel", "slow_point", "slow_voxel"):
        getattr(method, name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out.detach().double().numpy()})
        )
    pairs = {"slow_point": "point", "slow_voxel": "voxel"}
    queues = {"slow_point": method.point_queue.keys, "slow_voxel": method.voxel_queue.keys}
    queues = {name: keys.double().numpy() for name, keys in queues.items()}  # a copy
    slow = {a: [p.detach().double().numpy() for p in getattr(method, a).parameters()] for a in pairs}
    optimizer, place = make_optimizer(method.settings, method.parameter_groups()), 0
    for batch in batches(method, 3, 3, 2):
        step = method(batch)
        assert float(step.loss.detach()) == pytest.approx(numpy_loss(seen, queues, 0.1, cross), abs=1e-5)
        finds = [(seen[b] @ seen[a].T).argmax(1) == np.arange(len(batch.ids)) for a, b in pairs.items()]
        assert float(step.numbers["accuracy_in_batch"]) == pytest.approx(np.mean(finds))
        assert all(np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5) for rows in seen.values())
        assert not any(tensor.requires_grad for tensor in step.carry.values())
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        with torch.no_grad():
            method.after_step(step, 0.5)
        for name, fast in pairs.items():
            for i, key in enumerate(seen[name]):
                queues[name][(place + i) % 7] = key
            moved = [p.detach().double().numpy() for p in getattr(method, fast).parameters()]
            slow[name] = [0.8 * a + 0.2 * b for a, b in zip(slow[name], moved, strict=True)]
            for ours, twin in zip(getattr(method, name).parameters(), slow[name], strict=True):
                assert np.allclose(ours.detach().numpy(), twin, atol=1e-6)
        place = (place + len(batch.ids)) % 7
        assert np.allclose(method.point_queue.keys.numpy(), queues["slow_point"], atol=1e-6)
        assert np.allclose(method.voxel_queue.keys.numpy(), queues["slow_voxel"], atol=1e-6)
        assert int(method.point_queue.place) == int(method.voxel_queue.place) == place


def test_a_query_and_its_key_come_from_views_of_their_own():
    method = made().eval()
    seen = {}
    for name in ("point", "voxel", "slow_point", "slow_voxel"):
        getattr(method, name).register_forward_hook(lambda _m, inputs, _o, name=name: seen.update({name: inputs[0]}))
    (batch,) = batches(method, 2)
    method(batch)
    assert seen["point"] is batch["point_query"] and seen["slow_point"] is batch["point_key"]
    assert seen["voxel"] is batch["voxel_query"] and seen["slow_voxel"] is batch["voxel_key"]
    assert len({id(view) for view in seen.values()}) == 4


def test_a_batch_of_one_cloud():
    method = made().train()
    (batch,) = batches(method, 1)
    step = method(batch)
    assert step.loss.isfinite() and step.carry["point_key"].shape == step.carry["voxel_key"].shape == (1, 128)


def test_a_scan_of_one_point():
    method = made().train()
    sample = method.sample(Scans(1), True)
    step = method(sample.collate([sample.draw(0, np.random.default_rng(0))[0]]))
    assert step.loss.isfinite()


def test_the_published_settings():
    settings = DepthContrast.Settings()
    assert (settings.batch, settings.lr, settings.final_lr, settings.momentum) == (8, 1e-3, 1e-6, 0.9)
    assert (settings.dampening, settings.weight_decay, settings.temperature) == (0, 1e-4, 0.1)
    assert (settings.queue, settings.encoder_momentum, settings.points, settings.scan_points) == (
        60_000, 0.999, 16_384, 50_000
    )  # fmt: skip
    sample = DepthContrast.sample(SimpleNamespace(settings=settings), Scans(1), True)
    assert isinstance(sample, Views) and sample.augment == ViewSettings()
    assert sample.views == {"point_query": 16_384, "point_key": 16_384, "voxel_query": None, "voxel_key": None}


def test_the_sizes_of_its_parts():
    with torch.device("meta"):
        method = DepthContrast(
            config.validate(DepthContrast.Settings, {"dataset": "nuscenes"}), find_dataset("nuscenes")
        )
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in method.named_children()}
    heads = 2 * (128 * 128 + 128), 96 * 128 + 128 + 128 * 128 + 128
    student = sum(p.numel() for p in method.student.parameters())
    assert student == 37_849_184 - (96 * 64 + 64)  # the published network without its head
    assert sizes["point"] == sizes["slow_point"] == 3_007_632 + heads[0]
    assert sizes["voxel"] == sizes["slow_voxel"] == student + heads[1]
    assert method.point_queue.keys.shape == method.voxel_queue.keys.shape == (60_000, 128)
    assert method.model_parts() == {"point_head": []}
