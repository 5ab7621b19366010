"""PointContrast: its losses against plain loops, how matches are drawn, and its step on scans of its own sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datasets import find_dataset
from slidr import config
from slidr.losses import hardest_contrastive, infonce
from slidr.methods import find_method
from tests.data.test_scans import Street

SMALL = {
    "method": "pointcontrast", "dataset": "kitti", "architecture": "res16unet14c", "width": 0.25, "min_matches": 5,
    "voxel_size": [0.5, 2.0, 0.5], "match_distance": 0.3, "pairs": 100, "hard_negatives": 30,
}  # fmt: skip


def made(**values):
    method = find_method("pointcontrast")
    torch.manual_seed(0)
    return method(config.validate(method.Settings, SMALL | values), find_dataset("kitti"))


def a_batch(method, items: int = 2):
    scans = method.sample(Street({"a": [0, 11], "b": [0, 12]}), True)
    return scans.collate([scans.draw(0, np.random.default_rng(i))[0] for i in range(items)])


# Losses: plain loops in float64, and the gradients that one writes down by hand


def unit_rows(rng: np.random.Generator, rows: int, channels: int = 5) -> np.ndarray:
    x = rng.normal(size=(rows, channels))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plain_infonce(k: np.ndarray, q: np.ndarray, temperature: float):
    """(loss, share of hits, gradients by k and q)"""
    loss, hits, by_k, by_q = 0.0, 0, np.zeros_like(k), np.zeros_like(q)
    for i in range(len(k)):
        weights = np.array([np.exp(k[i] @ q[j] / temperature) for j in range(len(q))])
        share = weights / weights.sum()
        loss -= np.log(share[i]) / len(k)
        hits += share.argmax() == i
        for j in range(len(q)):
            slope = (share[j] - (i == j)) / temperature / len(k)
            by_k[i] += slope * q[j]
            by_q[j] += slope * k[i]
    return loss, hits / max(len(k), 1), by_k, by_q


def plain_hardest(a, b, pairs, matches, candidates, positive=0.1, negative=1.4):
    """(loss, share of pairs closer than their negatives, gradients by a and b)"""
    loss, by_a, by_b, closer = 0.0, np.zeros_like(a), np.zeros_like(b), np.ones(len(pairs), bool)
    for i, j in pairs:
        square = ((a[i] - b[j]) ** 2).sum()
        if square > positive:
            loss += (square - positive) / len(pairs)
            by_a[i] += 2 * (a[i] - b[j]) / len(pairs)
            by_b[j] -= 2 * (a[i] - b[j]) / len(pairs)
    true = set(map(tuple, matches))
    for side, (x, y, by_x, by_y) in enumerate(((a, b, by_a, by_b), (b, a, by_b, by_a))):
        counted = []
        for n, pair in enumerate(pairs):
            i, others = pair[side], candidates[1 - side]
            hardest = min(others, key=lambda row: ((x[i] - y[row]) ** 2).sum())
            distance = np.sqrt(((x[i] - y[hardest]) ** 2).sum())
            if ((i, hardest) if side == 0 else (hardest, i)) not in true:
                counted.append((i, hardest, distance))
                closer[n] &= ((a[pair[0]] - b[pair[1]]) ** 2).sum() < distance**2
        for i, hardest, distance in counted:
            if distance < negative:
                loss += (negative - distance) ** 2 / len(counted) / 2
                slope = -(negative - distance) * (x[i] - y[hardest]) / distance / len(counted)
                by_x[i] += slope
                by_y[hardest] -= slope
    return loss, closer.mean() if len(pairs) else 0.0, by_a, by_b


def compare(got, inputs, plain) -> None:
    loss, share = got
    gradients = torch.autograd.grad(loss, inputs)
    assert float(loss.detach()) == pytest.approx(plain[0], rel=1e-6, abs=1e-9) and not share.requires_grad
    assert float(share) == pytest.approx(plain[1], rel=1e-6)
    for gradient, expected in zip(gradients, plain[2:], strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 2, 65])
@pytest.mark.parametrize("temperature", [0.07, 0.4])
def test_infonce_equals_a_plain_loop(rows, temperature):
    rng = np.random.default_rng(rows)
    k, q = unit_rows(rng, rows), unit_rows(rng, rows)
    inputs = [torch.tensor(x, requires_grad=True) for x in (k, q)]
    compare(infonce(*inputs, temperature), inputs, plain_infonce(k, q, temperature))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 40]), st.sampled_from([0, 1, 3, 30]), st.sampled_from([1, 2, 20]))
def test_the_hardest_contrastive_loss_equals_a_plain_loop(seed, voxels, positives, negatives):
    """Also where every nearest candidate is a match, and where rows occur in several pairs."""
    rng = np.random.default_rng(seed)
    a, b = unit_rows(rng, voxels), unit_rows(rng, voxels + 1)
    matches = np.stack([rng.integers(0, voxels, 60), rng.integers(0, voxels + 1, 60)], 1)
    pairs = matches[rng.permutation(60)[:positives]]
    candidates = [rng.permutation(n)[:negatives] for n in (voxels, voxels + 1)]
    inputs = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    arguments = (pairs, matches, candidates)
    got = hardest_contrastive(*inputs, *map(torch.tensor, (pairs, matches)), tuple(map(torch.tensor, candidates)))
    compare(got, inputs, plain_hardest(a, b, *arguments))


# Which matches are compared


def test_queries_are_distinct_and_each_has_one_of_its_keys():
    method = made(pairs=3)
    matches = torch.tensor([[5, 0], [5, 1], [5, 1], [5, 2], [7, 3], [9, 4], [9, 5], [2, 6], [1, 7]])
    known, queries, keys = {tuple(m) for m in matches.tolist()}, [], []
    for seed in range(300):
        torch.manual_seed(seed)
        drawn = method.draw_pairs(matches)
        assert len(drawn) == 3 and len(drawn[:, 0].unique()) == 3 and {tuple(m) for m in drawn.tolist()} <= known
        queries += drawn[:, 0].tolist()
        keys += drawn[drawn[:, 0] == 5, 1].tolist()
    counts = np.bincount(queries)[[1, 2, 5, 7, 9]] / 900
    assert np.all(abs(counts - 0.2) < 0.05)  # queries count alike, however many matches they have
    assert np.all(abs(np.bincount(keys) / len(keys) - [0.25, 0.5, 0.25]) < 0.12)  # keys by their matches


@pytest.mark.parametrize("rows", [0, 1])
def test_all_matches_are_taken_if_there_are_few(rows):
    assert made().draw_pairs(torch.zeros(rows, 2, dtype=torch.int64)).shape == (rows, 2)


def test_a_step_contrasts_voxels_of_the_whole_batch(monkeypatch):
    """Its loss is the plain one of the drawn pairs' features, those of all scans mixed; both views see the network."""
    method = made(pairs=10**6).eval()
    batch, outputs, forward = a_batch(method), [], method.student.forward

    def look(part):
        outputs.append(forward(part))
        return outputs[-1]

    monkeypatch.setattr(method.student, "forward", look)
    torch.manual_seed(1)
    step = method(batch)
    (a, va), (b, vb) = outputs
    matches = torch.stack((va.inverse[batch.matches[:, 0]], vb.inverse[batch.matches[:, 1]]), 1)
    assert step.numbers["pairs"] == len(matches[:, 0].unique())
    torch.manual_seed(1)
    pairs = method.draw_pairs(matches)
    assert len(batch.first.batch_index[va.first[pairs[:, 0]]].unique()) == 2
    k, q = a[pairs[:, 0]].detach().double().numpy(), b[pairs[:, 1]].detach().double().numpy()
    np.testing.assert_allclose(np.linalg.norm(k, axis=1), 1, atol=1e-5)
    assert k.shape[1] == 64
    assert float(step.loss.detach()) == pytest.approx(plain_infonce(k, q, 0.07)[0], rel=1e-4)


@pytest.mark.parametrize("loss", ["infonce", "hardest"])
def test_it_learns_its_own_pairs(loss):
    method = made(loss=loss).train()
    batch = a_batch(method)
    optimizer = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        optimizer.zero_grad()
        found = method(batch)
        found.loss.backward()
        optimizer.step()
        losses.append(float(found.loss.detach()))
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.parameters())
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


def test_the_two_views_have_statistics_of_their_own():
    method = made().train()
    batch = a_batch(method)
    counted = [value for name, value in method.named_buffers() if name.endswith("num_batches_tracked")]
    method(batch)
    assert counted and all(int(value) == 2 for value in counted)


# What a person sees


def test_pictures_and_words(tmp_path):
    method = made(min_distance=5)
    method.sample(Street({"a": [0, 11], "b": [0, 12]}), train=False)
    method.sample(Street({"a": [0, 11, 22]}), train=True)
    said = method.describe()
    assert said["scans"] == "3 pairs of 3 keyframes, 5 m or more apart"
    assert said["loss"] == "infonce, 100 matches a step, within 0.3 m"
    assert method.watch(Street({"a": [0, 11]}), tmp_path, "_epoch_001") == ["matches_epoch_001.png"]
    assert (tmp_path / "matches_epoch_001.png").stat().st_size > 10_000
    assert method.model_parts().keys() == {"point_head"}  # no images, no image head
