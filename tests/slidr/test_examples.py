"""Logistic regression against its definition, and pieces of images of a class."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from data.files import InputError
from data.frame import CameraView, Frame, Pairs
from slidr.tasks.examples import PATCHES, cell_features, cut_examples, logistic_regression, patches, require_width
from slidr.teachers import load_teacher


def one_by_one(x: np.ndarray, labels: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """A class at a time, by SciPy, from the sum as it is written."""
    weights, biases, classes = [], [], labels.max() + 1
    for k in range(classes):

        def loss(wb: np.ndarray, k: int = k) -> float:
            total = (wb**2).sum() / 2
            for row, label in zip(x, labels, strict=True):
                share = len(x) / (classes * (labels == k).sum()) if label == k else 1.0
                total += c * share * np.logaddexp(0, -(1 if label == k else -1) * (wb[:-1] @ row + wb[-1]))
            return total

        found = minimize(loss, np.zeros(x.shape[1] + 1), tol=1e-10).x
        weights.append(found[:-1])
        biases.append(found[-1])
    return np.array(weights), np.array(biases)


@pytest.mark.parametrize(("rows", "classes", "c"), [(40, 3, 1.0), (17, 4, 5.0), (4, 2, 0.1)])
def test_logistic_regression_is_its_definition(rows, classes, c):
    rng = np.random.default_rng(rows)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])  # unequal in number
    x = rng.normal(size=(rows, 3)) + 2 * np.eye(4)[labels, :3]
    weight, bias = logistic_regression(torch.from_numpy(x), torch.from_numpy(labels), c)
    wanted = one_by_one(x, labels, c)
    np.testing.assert_allclose(weight, wanted[0], atol=1e-4)
    np.testing.assert_allclose(bias, wanted[1], atol=1e-4)
    again = logistic_regression(torch.from_numpy(x), torch.from_numpy(labels), c)
    assert weight.equal(again[0]) and bias.equal(again[1])


def test_logistic_regression_of_separable_rows_finds_them():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat_interleave(torch.tensor([2, 40, 7, 100, 3]))
    x = torch.nn.functional.normalize(torch.eye(6)[labels] + 0.05 * torch.randn(152, 6, generator=generator), dim=1)
    weight, bias = logistic_regression(x, labels, c=100.0)
    assert (x.double() @ weight.T + bias).argmax(1).equal(labels)


class World:
    """Left half of each image is the class a, the right half b; c has one point; every pixel holds its place."""

    dataset = SimpleNamespace(name="world", classes=("ignored", "a", "b", "c", "d"))

    def __len__(self):
        return 3

    def read(self, index, needs, rng=None) -> Frame:
        assert needs.cameras == "all" and needs.labels
        rows, columns = (grid.ravel() for grid in np.mgrid[0:60:3, 0:90:3])
        labels = np.where(columns < 45, 1, 2).astype(np.uint8)
        labels[0], labels[5:9] = 3, 0
        image = np.stack([*np.mgrid[0:60, 0:90], np.full((60, 90), index)], 2).astype(np.uint8)
        points = np.zeros((len(labels), 4), np.float32)
        pairs = Pairs(np.arange(len(labels)), np.zeros(len(labels), np.int64), rows, columns)
        return Frame("f", points, labels, [CameraView("front", "t", image)], pairs)


def halved(image: np.ndarray) -> torch.Tensor:
    """Every second pixel of the image, as features of its cells."""
    return torch.from_numpy(image[::2, ::2]).movedim(-1, 0).float()


def test_pieces_lie_where_most_points_have_the_class():
    found = cut_examples(World(), halved, per_class=2, frames=3, seed=0)
    assert {name: len(pieces) for name, pieces in found.items()} == {"a": 2, "b": 2}  # c never has most, d no point
    for name, pieces in found.items():
        for piece in pieces:  # a sixth of 60 rows is 10 pixels, 5 cells
            rows, columns, frame = piece.T
            assert len(piece) == 25 and rows.max() - rows.min() == 8 == columns.max() - columns.min()
            assert len(frame.unique()) == 1
            assert (columns < 45).float().mean() >= 0.5 if name == "a" else (columns >= 45).float().mean() >= 0.5
        assert pieces[0][0, 2] != pieces[1][0, 2]  # of two frames
    again = cut_examples(World(), halved, per_class=2, frames=3, seed=0)
    assert all(torch.equal(torch.cat(found[name]), torch.cat(again[name])) for name in found)
    with pytest.raises(InputError, match="examples of 0 classes, to tell apart there must be two"):
        cut_examples(World(), halved, per_class=2, frames=1, seed=0)


def test_a_piece_smaller_than_a_cell_is_that_cell():
    def coarse(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image[10::20, 15::30]).movedim(-1, 0).float()

    found = cut_examples(World(), coarse, per_class=2, frames=3, seed=0)
    assert all(len(piece) == 1 for pieces in found.values() for piece in pieces)


def test_cells_are_the_teachers_through_the_image_head():
    teacher, rng = load_teacher("resnet_small", "random"), np.random.default_rng(0)
    head = {"weight": torch.randn(5, teacher.channels), "bias": torch.randn(5)}
    model = SimpleNamespace(image_head=[head], point_head=[{"weight": torch.zeros(5, 24), "bias": torch.zeros(5)}])
    network = SimpleNamespace(model=model, student=None, device=torch.device("cpu"))
    image = rng.integers(0, 255, (24, 32, 3), np.uint8)
    found = cell_features(network, teacher, image, (24, 32))
    cells = teacher(torch.from_numpy(image).movedim(-1, 0)[None] / 255)[0].movedim(0, -1)
    torch.testing.assert_close(found.movedim(0, -1), cells @ head["weight"].T + head["bias"], rtol=1e-4, atol=1e-4)
    assert cell_features(network, teacher, image, 24).equal(found)
    assert teacher.stride == 4 and cell_features(network, teacher, image, 31).shape[1:] == (8, 10)  # 31 x 41.3 pixels
    assert patches(found).equal(found.flatten(1).T)
    many = patches(torch.arange(400.0).view(1, 20, 20))
    assert many.shape == (PATCHES, 1) and many[0] == 0 and many[-1] == 399
    require_width(network, teacher.channels, "it")
    model.image_head = [{"weight": torch.zeros(5, 7), "bias": torch.zeros(5)}]
    with pytest.raises(InputError, match=f"it gives {teacher.channels} numbers a patch, .* takes 7 "):
        require_width(network, teacher.channels, "it")
