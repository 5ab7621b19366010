"""Pooling, InfoNCE, segmentation loss and scores: hand-computed cases and the original's numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frame import Pairs
from slidr import pooling
from slidr.losses import cosine_distance, infonce, queue_infonce, rarity, tolerant_infonce, unit_distance
from slidr.pooling import coarse_means, max_by_cloud, max_of_head, mean_by_id, pool_pairs, pool_superpixels
from slidr.tasks.segmentation import (
    ConfusionMatrix,
    lovasz_softmax,
    predict,
    segmentation_loss,
    segmentation_scores,
)


def tensors(*columns) -> Pairs:
    return Pairs(*(torch.as_tensor(c, dtype=torch.int64) for c in columns))


@pytest.mark.parametrize("m", [0, 1, 1023])
def test_both_pooling_backends_give_the_mean(m, monkeypatch):
    torch.manual_seed(m)
    values, ids = torch.randn(m, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 9, (m,))
    results = []
    for scatter in (pooling.torch_scatter, None):
        monkeypatch.setattr(pooling, "torch_scatter", scatter)
        means = mean_by_id(values, ids, 10)
        (gradient,) = torch.autograd.grad((means * torch.arange(30).reshape(10, 3)).sum(), values)
        results.append((means, gradient))
        for i in range(10):
            wanted = values[ids == i].mean(0) if (ids == i).any() else torch.zeros(3)
            assert torch.allclose(means[i], wanted.double())
    assert torch.allclose(results[0][0], results[1][0]) and torch.allclose(results[0][1], results[1][1])


def test_pooling_sums_half_precision_in_float32():
    means = mean_by_id(torch.ones(4096, 1, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.int64), 1)
    assert means.dtype == torch.float32 and means.item() == 1


@pytest.mark.parametrize("m", [1, 5, 1023])
def test_the_maximum_of_each_cloud(m):
    torch.manual_seed(m)
    values, cloud = torch.randn(m, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 4, (m,)).int()
    maxima, weight = max_by_cloud(values, cloud, 5), torch.rand(5, 3)
    wanted = [
        values[cloud == i].max(0).values if (cloud == i).any() else torch.full((3,), -torch.inf) for i in range(5)
    ]
    wanted = torch.stack(wanted)
    assert torch.equal(maxima, wanted)
    finite = wanted.isfinite()
    ours, theirs = (torch.autograd.grad((x * weight)[finite].sum(), values)[0] for x in (maxima, wanted))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("m", [0, 1, 5, 1023])
def test_the_maximum_of_a_head_over_each_cloud(m):
    torch.manual_seed(m)
    head = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).double()
    rows, cloud = torch.randn(m, 4, dtype=torch.float64, requires_grad=True), torch.randint(0, 4, (m,)).int()
    weight, results = torch.rand(5, 3), []
    for maxima in (max_of_head(head, rows, cloud, 5), max_by_cloud(head(rows), cloud, 5)):
        loss = torch.where(maxima.isfinite(), maxima * weight, 0.0).sum()
        results.append((maxima, *torch.autograd.grad(loss, [rows, *head.parameters()])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows, negatives", [(1, 0), (1, 1), (3, 7), (8, 1023)])
def test_infonce_against_a_queue(rows, negatives):
    torch.manual_seed(rows)
    q, positive, queue = (F.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for n in (rows, rows, negatives))
    q.requires_grad_()
    loss, accuracy = queue_infonce(q, positive, queue, 0.1)
    terms, nearest = [], []
    for i in range(rows):
        own, others = torch.dot(q[i], positive[i]) / 0.1, queue @ q[i] / 0.1
        terms.append(torch.logsumexp(torch.cat((own[None], others)), 0) - own)
        nearest.append(bool((own >= others).all()))
    wanted = torch.stack(terms).mean()
    assert torch.allclose(loss, wanted) and accuracy == pytest.approx(np.mean(nearest)) and not accuracy.requires_grad
    assert torch.allclose(*(torch.autograd.grad(x, q)[0] for x in (loss, wanted)))


def plain_superpixels(features, superpixels, pairs) -> torch.Tensor:
    """What the fused pooling must equal: the full-resolution map, then a mean for each superpixel that a pair hits."""
    size = superpixels.shape[1:]
    pixels = F.normalize(F.interpolate(features, size=size, mode="bilinear", align_corners=True), dim=1)
    hit = superpixels[pairs.camera, pairs.row, pairs.column].tolist()
    occupied = sorted(set(zip(pairs.camera.tolist(), hit, strict=True)))
    means = [pixels[image][:, superpixels[image] == i].mean(1) for image, i in occupied]
    return torch.stack(means) if means else features.sum((2, 3))[:0]


def random_pairs(m: int, points: int, images: int, size: tuple[int, int]) -> Pairs:
    return tensors(*(torch.randint(0, high, (m,)) for high in (points, images, *size)))


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 17), st.integers(1, 17)),
    st.sampled_from([1, 5, 150, 65_536, 2**31 - 1]),
    st.sampled_from([0, 1, 30]),
    st.sampled_from([1, 2**19]),
)
def test_superpixels_without_the_full_map_equal_those_of_it(seed, images, cells, size, ids, m, chunk):
    """Values and gradients, whatever the sizes, the gaps between ids and the images pooled at a time."""
    torch.manual_seed(seed)
    features = torch.randn(images, 3, *cells, dtype=torch.float64, requires_grad=True)
    superpixels = torch.randint(0, ids, (images, *size)) // max(1, ids // 5) * max(1, ids // 5)
    pairs = random_pairs(m, 7, images, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "CHUNK", chunk)
        k, q = pool_superpixels(torch.randn(7, 3, dtype=torch.float64), features, superpixels, pairs)
        wanted = plain_superpixels(features, superpixels, pairs)
        assert q.shape == k.shape == wanted.shape
        ones = torch.randn_like(q)
        gradients = [torch.autograd.grad((out * ones).sum(), features)[0] for out in (q, wanted)]
    assert torch.allclose(q, wanted, atol=1e-9) and torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("cells", "size"), [((14, 26), (56, 104)), ((4, 7), (56, 98)), ((7, 13), (57, 101))])
def test_the_loss_without_the_full_map_equals_that_of_it(cells, size):
    """In float32, at the strides of a ResNet and a ViT and at one that divides nothing: loss and gradients to 1e-5."""
    torch.manual_seed(0)
    points = F.normalize(torch.randn(500, 64), dim=1).requires_grad_()
    features = torch.randn(5, 64, *cells, requires_grad=True)
    superpixels = (torch.arange(size[0])[:, None] // 9 * 12 + torch.arange(size[1]) // 9).repeat(5, 1, 1)
    pairs = random_pairs(900, 500, 5, size)
    results = []
    for plain in (False, True):
        k, q = pool_superpixels(points, features, superpixels, pairs)
        loss, _ = infonce(k, plain_superpixels(features, superpixels, pairs) if plain else q, 0.07)
        results.append((loss, *torch.autograd.grad(loss, (points, features))))
    for fused, plain in zip(*results, strict=True):
        assert (fused - plain).norm() < 1e-5 * plain.norm()


def test_a_superpixel_of_opposing_or_zero_features_has_finite_gradients():
    """Halfway between opposite cells, and where all cells are 0, there is no direction: no NaN either."""
    features = torch.tensor([1.0, -1.0, 0, 0]).reshape(1, 1, 1, 4).requires_grad_()
    superpixels = torch.arange(7).reshape(1, 1, 7)
    _, q = pool_superpixels(torch.zeros(1, 1), features, superpixels, tensors([0] * 7, [0] * 7, [0] * 7, range(7)))
    assert torch.allclose(q[:, 0], torch.tensor([1.0, 0, -1, -1, 0, 0, 0]))
    (gradient,) = torch.autograd.grad(q.sum(), features)
    assert torch.isfinite(gradient).all()


def test_every_pair_on_its_own_is_the_upsampled_feature_at_its_pixel():
    torch.manual_seed(0)
    points = torch.randn(9, 3, dtype=torch.float64)
    for cells, size in (((3, 4), (11, 17)), ((1, 1), (5, 6)), ((2, 1), (1, 3))):
        features = torch.randn(2, 3, *cells, dtype=torch.float64, requires_grad=True)
        pairs = random_pairs(40, 9, 2, size)
        k, q = pool_pairs(points, features, size, pairs)
        pixels = F.normalize(F.interpolate(features, size=size, mode="bilinear", align_corners=True), dim=1)
        wanted = pixels[pairs.camera, :, pairs.row, pairs.column]
        assert torch.equal(k, points[pairs.point]) and torch.allclose(q, wanted, atol=1e-12)
        gradients = [torch.autograd.grad((out * k).sum(), features)[0] for out in (q, wanted)]
        assert torch.allclose(*gradients, atol=1e-10)


def test_infonce_by_hand():
    """Two superpixels, the first seen by two points, the second by one; the cells are the pixels."""
    points = F.normalize(torch.tensor([[1.0, 0], [1, 1], [0, 1]]), dim=1)
    pixels = F.normalize(torch.tensor([[1.0, 0.2], [0.9, 0.1], [0.1, 1], [0, 1]]), dim=1).T.reshape(1, 2, 2, 2)
    maps = torch.tensor([[[3, 3], [7, 7]]])
    inputs = points, 5 * pixels, maps  # the length of a cell's feature does not matter
    k, q = pool_superpixels(*inputs, tensors([0, 1, 2], [0] * 3, [0, 0, 1], [0, 1, 1]))
    assert torch.allclose(k, torch.stack((points[:2].mean(0), points[2])))
    assert torch.allclose(q, torch.stack((pixels[0, :, 0].mean(1), pixels[0, :, 1].mean(1))))
    logits = k @ q.T / 0.5
    loss, accuracy = infonce(k, q, 0.5)
    assert torch.allclose(loss, -(logits.diagonal() - logits.logsumexp(1)).mean()) and accuracy == 1
    k, q = pool_superpixels(*inputs, tensors([2, 2, 0], [0] * 3, [0, 0, 1], [0, 1, 1]))
    assert infonce(k, q, 0.5)[1] == 0  # each superpoint now lies nearer the other superpixel


def test_further_rows_are_further_negatives():
    torch.manual_seed(0)
    k, q = torch.randn(3, 4), torch.randn(5, 4)
    by_hand = [-(k[i] @ q[i] - torch.logsumexp(q @ k[i], 0)) for i in range(3)]
    assert torch.allclose(infonce(k, q, 1.0)[0], torch.stack(by_hand).mean())


def test_the_objective_is_float32_under_autocast():
    torch.manual_seed(0)
    points, features = F.normalize(torch.randn(40, 8)), torch.randn(2, 8, 2, 3)
    maps = torch.arange(24).reshape(1, 4, 6).expand(2, 4, 6)
    pairs = tensors(range(40), np.arange(40) % 2, np.arange(40) % 4, np.arange(40) % 6)

    def losses():
        superpixels, pixels = (
            pool_superpixels(points, features, maps, pairs),
            pool_pairs(points, features, (4, 6), pairs),
        )
        return infonce(*superpixels, 0.07)[0], infonce(*pixels, 0.07)[0]

    wanted = losses()
    with torch.autocast("cpu", torch.bfloat16):
        assert losses() == wanted
    k, q = pool_pairs(points.bfloat16(), features.bfloat16(), (4, 6), pairs)
    assert k.dtype == q.dtype == torch.float32


def test_a_batch_without_pairs_is_zero_and_still_backpropagates():
    points, features = torch.randn(4, 2, requires_grad=True), torch.randn(1, 2, 2, 2, requires_grad=True)
    maps, none = torch.zeros(1, 4, 4, dtype=torch.int64), tensors(*[[]] * 4)
    for k, q in (pool_superpixels(points, features, maps, none), pool_pairs(points, features, (4, 4), none)):
        loss, accuracy = infonce(k, q, 0.1)
        gradients = torch.autograd.grad(loss, (points, features))
        assert loss == 0 and accuracy == 0 and all((g == 0).all() for g in gradients)


def test_objective_gradcheck():
    torch.manual_seed(0)
    maps = torch.randint(0, 4, (2, 5, 6))
    pairs = tensors([0, 1, 2, 4, 4], [0, 1, 1, 0, 1], [0, 1, 2, 4, 0], [0, 1, 5, 0, 1])
    inputs = (
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda a, b: infonce(*pool_superpixels(a, b, maps, pairs), 0.5)[0], inputs)
    assert torch.autograd.gradcheck(lambda a, b: infonce(*pool_pairs(a, b, (5, 6), pairs), 0.5)[0], inputs)


def test_segmentation_loss_gradcheck_and_nothing_labelled():
    logits = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, torch.arange(12) % 4), (logits,))
    loss = segmentation_loss(logits, torch.zeros(12, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_lovasz_of_hard_predictions_is_the_jaccard_loss():
    """On 0/1 probabilities the Lovász extension is 1 - IoU, averaged over the classes present."""
    labels, prediction = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    loss = lovasz_softmax(F.one_hot(prediction, 3).double(), labels)
    assert torch.allclose(loss, torch.tensor(1 - (1 / 3 + 2 / 4) / 2).double())


def test_scores_by_hand():
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([1, 1, 2, 2, 1]), torch.tensor([1, 1, 2, 1, 0]))
    scores = segmentation_scores(confusion, confusion, ("ignored", "car", "bus", "tree"))
    assert list(scores.figures) == ["car", "bus", "tree", "mIoU"] and scores.unit == "%"
    assert np.allclose(list(scores.figures.values())[:3], [200 / 3, 50, np.nan], equal_nan=True)  # no tree occurs
    assert np.isclose(scores.value, (200 / 3 + 50) / 2) and scores.direction == "max"
    assert np.isclose(scores.details["frequency-weighted IoU"], (3 * 200 / 3 + 1 * 50) / 4)
    assert np.isclose(scores.details["accuracy"], 75) and scores.details["confusion"][1] == [0, 2, 1, 0]
    # the published code counts the absent class as 100
    assert np.isclose(scores.comparable["mIoU as the published code counts"], (200 / 3 + 50 + 100) / 3)
    row = scores.row()
    assert list(row) == ["val_mIoU", "val_iou/car", "val_iou/bus"] and row["val_mIoU"] == scores.value


def test_a_labelled_point_predicted_as_0_is_a_miss_and_nothing_labelled_has_no_score():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([1, 0, 2]), torch.tensor([1, 1, 2]))
    assert confusion.iou()[1:].tolist() == [50, 100] and np.isclose(confusion.accuracy(), 200 / 3)
    empty = ConfusionMatrix(3)
    empty.update(torch.tensor([1, 2]), torch.tensor([0, 0]))
    figures = [empty.mean_iou(), empty.frequency_weighted_iou(), empty.accuracy()]
    assert np.isnan([*empty.iou().tolist(), *figures]).all()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 1023]))
def test_counts_add_up_over_updates(seed, n):
    g = torch.Generator().manual_seed(seed)
    labels, prediction = (torch.randint(0, 5, (n,), generator=g) for _ in range(2))
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(prediction, labels)
    for i in range(0, n, 100):
        parts.update(prediction[i : i + 100], labels[i : i + 100])
    assert torch.equal(whole.counts, parts.counts) and whole.counts.sum() == n


def test_class_0_is_never_predicted():
    assert predict(torch.tensor([[9.0, 1, 2], [9, 3, 2]])).tolist() == [2, 1]


def unit_rows(rng: np.random.Generator, rows: int, channels: int = 5) -> torch.Tensor:
    return F.normalize(torch.from_numpy(rng.normal(size=(rows, channels))), dim=1)


@pytest.mark.parametrize("excluded", ["zeroed", "masked"])
@given(rows=st.integers(1, 30), tolerance=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_tolerant_infonce_excludes_what_lies_below_the_quantile(excluded, rows, tolerance, seed):
    """Row by row, as ST-SLidR writes it down: the quantile of 1 - cosine, the row itself included."""
    rng = np.random.default_rng(seed)
    k, q, shown = unit_rows(rng, rows), unit_rows(rng, rows), unit_rows(rng, rows)
    likeness = shown @ shown.T
    losses, _ = tolerant_infonce(k, q, likeness, 0.2, tolerance, excluded)
    for i in range(rows):
        unlike = 1 - likeness[i].numpy()
        out = unlike < np.quantile(unlike, tolerance)
        logits = (k[i] @ q.T / 0.2).numpy()
        terms = np.exp(logits)
        terms[out & (np.arange(rows) != i)] = 1.0 if excluded == "zeroed" else 0.0
        assert losses[i] == pytest.approx(-np.log(np.exp(logits[i]) / terms.sum()), abs=1e-9)


def test_tolerant_infonce_without_tolerance_is_infonce():
    rng = np.random.default_rng(0)
    k, q, shown = unit_rows(rng, 7), unit_rows(rng, 7), unit_rows(rng, 7)
    losses, accuracy = tolerant_infonce(k, q, shown @ shown.T, 0.07, 0.0, "masked")
    expected, expected_accuracy = infonce(k, q, 0.07)
    torch.testing.assert_close((losses.mean(), accuracy), (expected, expected_accuracy))


def test_rarity_by_hand():
    """Two alike superpixels share votes of 1 + .8, the third has its own: weights 0, 0 and 1; .4 is below alike."""
    likeness = torch.tensor([[1.0, 0.8, 0.4], [0.8, 1.0, 0.1], [0.4, 0.1, 1.0]])
    torch.testing.assert_close(rarity(likeness, 0.5), torch.tensor([0.0, 0.0, 1.0]))
    votes = torch.tensor([2.2, 1.8, 1.4])  # .4 counts now
    torch.testing.assert_close(rarity(likeness, 0.4), 1 - (votes - 1.4) / 0.8)
    assert rarity(likeness[:1, :1], 0.5).tolist() == [1.0] and rarity(likeness[:0, :0], 0.5).tolist() == []


def test_distances_of_unit_vectors_by_hand():
    k, q = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 5.0], [0.0, 3.0]])
    assert float(unit_distance(k, q)) == pytest.approx(2**0.5 / 2)  # a right angle, and none
    assert float(cosine_distance(k, q)) == pytest.approx(0.5)
    for distance in (unit_distance, cosine_distance):
        rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, d=distance: d(x, torch.eye(4, dtype=torch.float64)[:3]), rows)
        none = torch.zeros(0, 4, requires_grad=True)
        distance(none, torch.zeros(0, 4)).backward()
        assert none.grad.shape == (0, 4)


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (3, 3)])
def test_coarse_means_against_a_loop(size):
    rng = np.random.default_rng(sum(size))
    features = torch.from_numpy(rng.normal(size=(2, 3, 3, 2)))
    superpixels = torch.from_numpy(rng.integers(0, 5, (2, *size)))
    m = 4
    pairs = Pairs(*(torch.from_numpy(rng.integers(0, n, m)) for n in (9, 2, *size)))
    names = sorted(
        {(int(i), int(superpixels[i, r, c])) for i, r, c in zip(pairs.camera, pairs.row, pairs.column, strict=True)}
    )
    found = coarse_means(features, superpixels, pairs)
    assert len(found) == len(names)
    for (image, name), mean in zip(names, found, strict=True):
        cells = [
            features[image, :, y, x]
            for y in range(3)
            for x in range(2)
            if superpixels[image, y * size[0] // 3, x * size[1] // 2] == name
        ]
        torch.testing.assert_close(mean, torch.stack(cells).mean(0) if cells else torch.zeros(3, dtype=mean.dtype))
    assert coarse_means(features, superpixels, Pairs(*(torch.zeros(0, dtype=torch.int64),) * 4)).shape == (0, 3)
