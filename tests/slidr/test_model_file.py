"""model.pt: its parts there and back, files of the first format, and the library that reads them."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import slidr
from data.files import InputError
from data.frame import Frame, collate
from slidr.networks.model_file import (
    InputMeaning,
    Pretraining,
    apply_layers,
    backbone_weights,
    head_layers,
    read_model,
    write_model,
)
from slidr.networks.student import Student, StudentSpec
from slidr.tensor_files import write_tensors

SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student(SPEC, 5, bn_momentum=0.1).eval()


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).uniform(-20, 20, (300, 4)).astype(np.float32)


def outputs(student: Student, points: np.ndarray, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    with torch.no_grad():
        out, voxels = student(collate([Frame(id="points", points=points)], offset, scale))
    return out[voxels.inverse]


def format_1(student: Student, classes: list[str]) -> dict:
    """A file as the first release wrote it."""
    return {
        "format": 1,
        "stage": "fewshot" if classes else "pretrain",
        "spec": SPEC.model_dump(mode="json") | {"input_feature": "intensity"},
        "classes": classes,
        "task": {"stage": "fewshot", "dataset": "kitti", "pct": 1.0} if classes else None,
        "weights": {k: v for k, v in student.network.state_dict().items() if not k.endswith("num_batches_tracked")},
    }


def test_features_are_those_of_the_network(tmp_path, student, points):
    meaning = InputMeaning(intensity_scale=2.0, intensity_offset=0.5)
    parts = {"backbone": backbone_weights(student), "point_head": head_layers(student), "input": meaning}
    write_model(tmp_path / "model.pt", stage="pretrain", spec=SPEC, **parts)
    network = slidr.load(tmp_path / "model.pt")
    features = network(torch.from_numpy(points))
    torch.testing.assert_close(features, F.normalize(outputs(student, points, 2.0, 0.5), dim=1), rtol=1e-5, atol=1e-6)
    assert network(points, features="backbone").shape == (300, 24) and features.equal(network(points))
    with pytest.raises(InputError, match="has no classes"):
        network(points, head=True)
    with pytest.raises(ValueError, match=r"must be \[N, 4\]"):
        network(points[:, :3])
    assert network(points[:1]).shape == (1, 5) and network(points[:0]).shape == (0, 5)


def test_a_head_of_several_layers_and_one_that_is_identity(tmp_path, student, points):
    layers = [{"weight": torch.randn(*size), "bias": torch.randn(size[0])} for size in ((7, 24), (3, 7))]
    parts = {"stage": "pretrain", "spec": SPEC, "backbone": backbone_weights(student)}
    write_model(tmp_path / "two.pt", **parts, point_head=layers)
    write_model(tmp_path / "none.pt", **parts)
    backbone = slidr.load(tmp_path / "none.pt")(points, features="backbone")
    by_hand = torch.relu(backbone @ layers[0]["weight"].T + layers[0]["bias"]) @ layers[1]["weight"].T
    torch.testing.assert_close(
        slidr.load(tmp_path / "two.pt")(points), F.normalize(by_hand + layers[1]["bias"], dim=1), rtol=1e-5, atol=1e-5
    )
    assert slidr.load(tmp_path / "none.pt")(points).equal(F.normalize(backbone, dim=1))
    assert apply_layers([], backbone) is backbone


def test_everything_that_was_written_is_read(tmp_path, student):
    written = {
        "image_head": [{"weight": torch.ones(5, 8), "bias": torch.zeros(5)}],
        "teacher": {"name": "resnet", "layer": "last", "sha256": "0" * 64},
        "pretraining": Pretraining(method="slidr", dataset="nuscenes"),
        "classes": ("ignored", "car"),
    }
    write_model(tmp_path / "m.pt", stage="pretrain", spec=SPEC, backbone=backbone_weights(student), **written)
    model = read_model(tmp_path / "m.pt")
    assert model.pretraining == written["pretraining"] and model.teacher.layer == "last" and model.format == 2
    assert model.image_head[0]["weight"].equal(torch.ones(5, 8))
    assert model.point_head == [] and model.class_head is None


def test_files_of_the_first_format(tmp_path, student, points):
    write_tensors(tmp_path / "old.pt", format_1(student, []))
    torch.testing.assert_close(
        slidr.load(tmp_path / "old.pt")(points), F.normalize(outputs(student, points), dim=1), rtol=1e-5, atol=1e-6
    )
    names = ["ignored", "a", "b", "c", "d"]
    write_tensors(tmp_path / "tuned.pt", format_1(student, names))
    network = slidr.load(tmp_path / "tuned.pt")
    assert network.classes == tuple(names) and network.model.task.pct == 1.0
    assert network(points, head=True).equal(outputs(student, points)[:, 1:].argmax(1) + 1)
