"""Pooling, InfoNCE, segmentation loss and scores: hand-computed cases and the original's numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frame import Pairs
from slidr import pooling
from slidr.losses import superpixel_infonce
from slidr.pooling import mean_by_id, superpixel_rows
from slidr.segmentation import ConfusionMatrix, lovasz_softmax, predict, segmentation_loss


def tensors(*columns) -> Pairs:
    return Pairs(*(torch.as_tensor(c, dtype=torch.int64) for c in columns))


@pytest.mark.parametrize("m", [0, 1, 1023])
def test_both_pooling_backends_give_the_mean(m, monkeypatch):
    torch.manual_seed(m)
    values, ids = torch.randn(m, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 9, (m,))
    results = []
    for scatter in (pooling.torch_scatter, None):
        monkeypatch.setattr(pooling, "torch_scatter", scatter)
        means, counts = mean_by_id(values, ids, 10)
        (gradient,) = torch.autograd.grad((means * torch.arange(30).reshape(10, 3)).sum(), values)
        results.append((means, gradient))
        for i in range(10):
            assert counts[i] == (ids == i).sum()
            wanted = values[ids == i].mean(0) if counts[i] else torch.zeros(3)
            assert torch.allclose(means[i], wanted.double())
    assert torch.allclose(results[0][0], results[1][0]) and torch.allclose(results[0][1], results[1][1])


def test_pooling_sums_half_precision_in_float32():
    values = torch.ones(4096, 1, dtype=torch.bfloat16)
    means, _ = mean_by_id(values, torch.zeros(4096, dtype=torch.int64), 1)
    assert means.dtype == torch.float32 and means.item() == 1


def test_superpixel_rows_never_bleed_into_the_next_image():
    maps = torch.tensor([[[0, 400], [0, 0]], [[0, 1], [2, 2]]])  # the published code's stride of 150 fails here
    rows, n = superpixel_rows(maps)
    assert rows.tolist() == [[[0, 1], [0, 0]], [[2, 3], [4, 4]]] and n == 5


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 150, 2**31 - 1]), st.integers(0, 3))
def test_superpixel_rows_name_each_image_and_id_once(seed, largest, images):
    maps = torch.randint(0, largest, (images, 5, 7), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    rows, n = superpixel_rows(maps)
    named = [(i, int(v)) for i in range(images) for v in maps[i].flatten()]
    assert [sorted(set(named))[row] for row in rows.flatten()] == named and n == len(set(named))


def test_infonce_by_hand():
    """Two superpixels; the first is seen by two points, the second by one."""
    points = F.normalize(torch.tensor([[1.0, 0], [1, 1], [0, 1]]), dim=1)
    pixels = F.normalize(torch.tensor([[1.0, 0.2], [0.9, 0.1], [0.1, 1], [0, 1]]), dim=1).T.reshape(1, 2, 2, 2)
    maps = torch.tensor([[[3, 3], [7, 7]]])
    loss, numbers = superpixel_infonce(points, pixels, maps, tensors([0, 1, 2], [0] * 3, [0, 0, 1], [0, 1, 1]), 0.5)
    k = torch.stack((points[:2].mean(0), points[2]))
    q = torch.stack((pixels[0, :, 0].mean(1), pixels[0, :, 1].mean(1)))
    logits = k @ q.T / 0.5
    expected = -(logits.diagonal() - logits.logsumexp(1)).mean()
    assert torch.allclose(loss, expected) and numbers == {"superpixels": 2, "pairs": 3, "accuracy": 1.0}
    swapped = tensors([2, 2, 0], [0] * 3, [0, 0, 1], [0, 1, 1])  # each superpoint now lies nearer the other superpixel
    assert superpixel_infonce(points, pixels, maps, swapped, 0.5)[1]["accuracy"] == 0


def test_infonce_is_float32_under_autocast():
    torch.manual_seed(0)
    points, pixels = F.normalize(torch.randn(40, 8)), F.normalize(torch.randn(2, 8, 4, 6))
    pairs = tensors(range(40), np.arange(40) % 2, np.arange(40) % 4, np.arange(40) % 6)
    inputs = points, pixels, torch.arange(24).reshape(1, 4, 6).expand(2, 4, 6), pairs, 0.07
    wanted, _ = superpixel_infonce(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert superpixel_infonce(*inputs)[0] == wanted


def test_infonce_without_pairs_is_zero_and_still_backpropagates():
    points, pixels = torch.randn(4, 2, requires_grad=True), torch.randn(1, 2, 2, 2, requires_grad=True)
    loss, numbers = superpixel_infonce(points, pixels, torch.zeros(1, 2, 2, dtype=torch.int64), tensors(*[[]] * 4), 0.1)
    loss.backward()
    assert loss == 0 and (points.grad == 0).all() and (pixels.grad == 0).all()
    assert numbers == {"superpixels": 0, "pairs": 0, "accuracy": 0.0}


def test_infonce_gradcheck():
    torch.manual_seed(0)
    maps = torch.randint(0, 4, (2, 3, 3))
    pairs = tensors([0, 1, 2, 4, 4], [0, 1, 1, 0, 1], [0, 1, 2, 2, 0], [0, 1, 2, 0, 1])
    inputs = (
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda a, b: superpixel_infonce(a, b, maps, pairs, 0.5)[0], inputs)


def test_the_originals_loss_from_its_pooled_features(shared):
    """Each stored pair of pooled features as a superpixel of one pixel and one point."""
    z = np.load(shared("golden", "step", "C_slidr_f64.npz"))
    k, q = torch.from_numpy(z["k"]).double(), torch.from_numpy(z["q"]).double()
    n = len(k)
    pairs = tensors(range(n), [0] * n, [0] * n, range(n))
    loss, numbers = superpixel_infonce(k, q.T.reshape(1, 64, 1, n), torch.arange(n).reshape(1, 1, n), pairs, 0.07)
    assert abs(float(loss) - float(z["loss"])) < 1e-5
    assert abs(numbers["accuracy"] - float(z["argmax_acc"])) < 0.5 / n


def test_the_originals_superpixels_are_counted_alike(shared):
    """Occupied superpixels, and points and pixels in each, of two real frames."""
    z = np.load(shared("golden", "step", "C_slidr_f64.npz"))
    b = np.load(shared("golden", "step", "B_batch.npz"))
    maps, image = (torch.from_numpy(b[key]).long() for key in ("superpixels", "pairing_images"))
    rows, n = superpixel_rows(maps)
    _, points = mean_by_id(torch.zeros(len(image), 1), rows[image[:, 0], image[:, 1], image[:, 2]], n)
    _, pixels = mean_by_id(torch.zeros(rows.numel(), 1), rows.flatten(), n)
    occupied = points > 0
    assert int(occupied.sum()) == len(z["k"])
    assert np.array_equal(points[occupied], z["count_points"])
    assert np.array_equal(pixels[occupied], z["count_pixels"])


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
    scores = confusion.scores()
    assert np.allclose(scores["iou"], [np.nan, 2 / 3, 1 / 2, np.nan], equal_nan=True)  # class 3 does not occur
    assert np.isclose(scores["miou"], (2 / 3 + 1 / 2) / 2)
    assert np.isclose(scores["fwiou"], (3 * 2 / 3 + 1 * 1 / 2) / 4) and np.isclose(scores["accuracy"], 3 / 4)
    # the published code counts the absent class as 1
    assert np.isclose(confusion.code_compatible_miou(), (2 / 3 + 1 / 2 + 1) / 3)


def test_a_labelled_point_predicted_as_0_is_a_miss_and_nothing_labelled_has_no_score():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([1, 0, 2]), torch.tensor([1, 1, 2]))
    assert confusion.scores()["iou"][1:] == [0.5, 1] and np.isclose(confusion.scores()["accuracy"], 2 / 3)
    empty = ConfusionMatrix(3)
    empty.update(torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert np.isnan([*empty.scores()["iou"], *(empty.scores()[k] for k in ("miou", "fwiou", "accuracy"))]).all()


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
