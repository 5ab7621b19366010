"""Heads of the probe, and the rates of a network's parts in fine-tuning."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import slidr
from data.frame import Batch, Frame, collate
from slidr.config import Fewshot, Linprobe, validate
from slidr.networks.model_file import TaskRecord, apply_layers, layers_of, load_segmenter, read_model
from slidr.networks.student import RowNorm, Student, StudentSpec, make_head
from slidr.tasks.segmentation import FineTuning, LinearProbe, Segmentation, predict
from slidr.training import make_optimizer

SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.5, 4, 0.5))
CLASSES = ("ignored", "a", "b", "c")
READER = SimpleNamespace(dataset=SimpleNamespace(classes=CLASSES), intensity_scale=1.0, intensity_offset=0.0)


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(0)
    points = rng.uniform(-9, 9, (200, 4)).astype(np.float32)
    return collate([Frame(id="a", points=points, labels=rng.integers(0, 4, 200).astype(np.uint8))])


def probe(head: str, **values: object) -> LinearProbe:
    torch.manual_seed(0)
    student = Student(SPEC, len(CLASSES) if head == "linear" else None, 0.02)
    settings = validate(Linprobe, {"head": head} | values)
    record = TaskRecord(stage="linprobe", dataset="synthetic", pct=100, head=head)
    return LinearProbe(settings, Segmentation(student, READER), record)


@pytest.mark.parametrize("rows", [2, 3, 500])
def test_the_norm_of_rows_is_torchs(rows):
    """Values, running statistics and gradients, in float64."""
    ours, theirs = RowNorm(5).double(), nn.BatchNorm1d(5).double()
    x = (3 + 2 * torch.randn(rows, 5)).double().requires_grad_()
    outputs = ours(x), theirs(x)
    inputs = [(x, *norm.parameters()) for norm in (ours, theirs)]
    gradients = [torch.autograd.grad(y.pow(3).sum(), of) for y, of in zip(outputs, inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-9, atol=1e-9)
    assert ours(x[:1]).isfinite().all() and ours(x[:0]).shape == (0, 5)


@pytest.mark.parametrize(("hidden", "norm"), [(None, True), (7, True), (7, False), (None, False)])
def test_layers_are_the_head_in_eval_mode(hidden, norm):
    torch.manual_seed(0)
    head = make_head(6, 4, hidden, norm)
    with torch.no_grad():
        for value in head.parameters():
            value.uniform_(-2, 2)
        for _ in range(20):
            head(5 + 3 * torch.randn(50, 6))
    x = 5 + 3 * torch.randn(9, 6)
    layers = layers_of(head)
    assert [layer.keys() for layer in layers] == [{"weight", "bias"}] * (1 if hidden is None else 2)
    torch.testing.assert_close(apply_layers(layers, x), head.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mlp", "batchnorm"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_probe_learns_and_its_file_says_the_same(tmp_path, batch, head, optimizer):
    learner = probe(head, optimizer=optimizer, lr=0.01)
    frozen = {name: value.clone() for name, value in learner.task.student.state_dict().items() if "final" not in name}
    steps = make_optimizer(learner.settings, learner.train().parameter_groups())
    losses = []
    for _ in range(12):
        steps.zero_grad()
        loss = learner(batch).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in learner.parameters())
        steps.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    state = learner.task.student.state_dict()
    assert all(torch.equal(state[name], value) for name, value in frozen.items())

    learner.write_model(tmp_path / "model.pt")
    model = read_model(tmp_path / "model.pt")
    assert model.task.head == head and len(model.class_head) == (2 if head == "mlp" else 1)
    with torch.no_grad():
        logits, inverse = learner.task.logits(batch)
        student, layers = load_segmenter(model, tmp_path)
        again = Segmentation(student, READER, layers)
        torch.testing.assert_close(again.logits(batch)[0], logits, rtol=1e-4, atol=1e-4)
    network = slidr.load(tmp_path / "model.pt")
    assert (network(batch.points, head=True) == predict(logits)[inverse]).float().mean() > 0.99


def test_a_probe_is_scored_with_the_running_statistics(batch):
    learner = probe("batchnorm").train()
    learner(batch)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    first, second = (learner.task.logits(batch)[0] for _ in range(2))
    assert torch.equal(first, second) and not learner.head.training
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def rates(**values: object) -> dict[str, float]:
    """Parameter -> its learning rate."""
    student = Student(SPEC, len(CLASSES), 0.02)
    settings = validate(Fewshot, {"lr": 0.2, "lr_head": 3.0} | values)
    record = TaskRecord(stage="fewshot", dataset="synthetic", pct=1)
    groups = FineTuning(settings, Segmentation(student, READER), record).parameter_groups()
    names = {id(p): name for name, p in student.network.named_parameters()}
    found = [(names.pop(id(p)), group["lr"]) for group in groups for p in group["params"]]  # each once
    assert not names
    return dict(found)


def test_each_part_learns_slower_than_the_one_behind_it():
    found = rates(layer_decay=0.5)
    depths = {"final": None, "convtr7": 1, "bntr7": 1, "block8": 1, "block7": 2, "convtr4": 4, "block5": 4, "block4": 5}
    depths |= {"conv4": 5, "bn1": 8, "conv1": 8, "block1": 8, "conv0": 9, "bn0": 9}
    for begin, depth in depths.items():
        own = {lr for name, lr in found.items() if name.startswith(begin)}
        assert own == {3.0 if depth is None else 0.2 * 0.5**depth}, begin
    assert len(set(found.values())) == 10


def test_without_decay_there_are_two_rates():
    found = rates()
    assert {name.split(".")[0] for name, lr in found.items() if lr == 3.0} == {"final"}
    assert set(found.values()) == {0.2, 3.0}
