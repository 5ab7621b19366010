"""Nearest neighbours: against naive definitions, and average precision counted by hand."""

import numpy as np
import pytest
import torch

from slidr.tasks import neighbours
from slidr.tasks.neighbours import average_precision, count_neighbours, histograms, subsample


def naive_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """scikit-learn's: the sum over thresholds, from the highest down, of (R_n - R_(n-1)) P_n."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        recall = (found & positive).sum() / positive.sum()
        total += (recall - before) * (found & positive).sum() / found.sum()
        before = recall
    return 100 * total


def of(scores: list[int], positive: list[bool], k: int) -> float:
    counts = histograms(torch.tensor(scores)[:, None], torch.tensor(positive)[:, None], k)
    return average_precision(*counts[:, 0])


def test_average_precision_by_hand():
    # thresholds 3: 1 of 1 right; 2: 2 of 3; 1: nothing new is positive; 0: 3 of 5
    by_hand = 100 * (1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 5)
    assert of([3, 2, 2, 1, 0], [True, True, False, False, True], 3) == pytest.approx(by_hand)
    assert of([2, 1, 0], [True, False, False], 2) == 100
    assert of([0, 0, 0, 0], [True, False, False, False], 2) == 25  # no order at all: the share of positives
    assert np.isnan(of([2, 1], [False, False], 2))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, 21, 300), rng.random(300) < 0.2
    expected = naive_average_precision(scores, positive)
    assert of(scores.tolist(), positive.tolist(), 20) == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 100, 2**26])
def test_neighbours_are_those_of_a_naive_search(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rng = np.random.default_rng(0)
    queries, database = (rng.normal(size=(n, 8)).astype(np.float32) for n in (37, 50))
    member = rng.random((50, 3)) < 0.3
    found = count_neighbours(*map(torch.from_numpy, (queries, database, member)), 7)
    for query, counts in zip(queries, found, strict=True):
        nearest = sorted(range(50), key=lambda i: -float(database[i] @ query))[:7]
        assert counts.tolist() == [sum(bool(member[i, c]) for i in nearest) for c in range(3)]
    assert count_neighbours(torch.zeros(0, 8), *map(torch.from_numpy, (database, member)), 7).shape == (0, 3)


def test_the_subsample_is_drawn_by_the_seed_and_bounded_by_class():
    labels = np.repeat(np.array([0, 1, 2, 3], np.uint8), (50, 400, 30, 5))
    rows = subsample(labels, 20, seed=1)
    assert np.bincount(labels[rows]).tolist() == [0, 20, 20, 5] and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, subsample(labels, 20, seed=1))
    assert not np.array_equal(rows, subsample(labels, 20, seed=2))
    np.testing.assert_array_equal(subsample(labels, None, seed=1), np.flatnonzero(labels))
    assert len(subsample(np.zeros(5, np.uint8), 20, seed=1)) == 0
