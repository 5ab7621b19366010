"""Loss, scores and one downstream step on real frames, equal to the original's (golden/step: E1, E2, E3)."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.datasets import open_reader
from data.datasets.dataset import Reader
from data.frame import Batch
from data.samples.single import Single
from slidr.config import Fewshot, Linprobe, validate
from slidr.networks.minkunet import from_minkowski, to_minkowski
from slidr.networks.model_file import TaskRecord
from slidr.networks.student import Student, StudentSpec
from slidr.stages.fewshot import published
from slidr.tasks.segmentation import (
    ConfusionMatrix,
    FineTuning,
    LinearProbe,
    Segmentation,
    lovasz_softmax,
    segmentation_loss,
)
from slidr.training import make_optimizer, rate_factor
from tests.triton_kernels import test_golden

FRAMES = {
    "nuscenes0": ("nuscenes", "nuscenes2", "03d62cba14594dfdbb660b12186b79e1"),
    "kitti08_000000": ("kitti", "semantickitti33", "08_000000"),
}


def relative(a: torch.Tensor, b: np.ndarray) -> float:
    b = torch.from_numpy(np.asarray(b, np.float64))
    return float((a.detach().double() - b).norm() / b.norm())


def open_frame(shared, frame: str) -> tuple[Reader, Batch]:
    """The reader of one real frame, and the frame as the loaders of the downstream stages give it."""
    dataset, folder, name = FRAMES[frame]
    reader = open_reader(dataset, shared("realdata", folder), "all")
    sample = Single(reader, Segmentation.needs)
    item, _ = sample.draw(reader.ids.index(name), np.random.default_rng(0))
    return reader, sample.collate([item])


def learner_of(stage: str, student: Student, dataset: str, reader: Reader | None = None, **values: object):
    """The stage's learner and its settings."""
    record = TaskRecord(stage=stage, dataset=dataset, pct=1.0)
    if stage == "fewshot":
        settings = published(validate(Fewshot, {"dataset": dataset} | values))
        return FineTuning(settings, Segmentation(student, reader), record), settings
    settings = validate(Linprobe, {"dataset": dataset} | values)
    return LinearProbe(settings, Segmentation(student, reader), record), settings


def seeded_student(classes: int) -> Student:
    spec = StudentSpec(architecture="res16unet34c", width=1.0, grid="cylindrical", voxel_size=(0.1, 1.0, 0.1))
    student = Student(spec, classes, bn_momentum=0.02)
    state = to_minkowski(student.network.state_dict())
    theirs = {key: test_golden.seeded(key, value.shape, 0) for key, value in state.items()}
    student.network.load_state_dict(from_minkowski(theirs), strict=False)
    return student


def assert_close(tensors: dict[str, torch.Tensor], z, prefix: str, worst: float, l2: float) -> None:
    """Every stored tensor, by its 64 samples (relative L2) and its norm."""
    ours = to_minkowski(tensors)
    assert set(z[f"{prefix}_keys"]) == set(ours)
    for key, idx, val, norm in zip(*(z[f"{prefix}_{k}"] for k in ("keys", "idx", "val", "l2")), strict=True):
        tensor = ours[str(key)].detach().double()
        assert (tensor.flatten()[torch.from_numpy(idx)] - torch.from_numpy(val)).norm() <= worst * np.linalg.norm(
            val
        ) + 1e-12, (prefix, key)
        assert abs(float(tensor.norm()) - norm) <= l2 * norm + 1e-12, (prefix, key)


# E1: loss and scores


@pytest.mark.parametrize("n", [17, 20])
def test_the_loss_and_its_gradient(shared, n):
    z = np.load(shared("golden", "step", "E1_loss_metrics.npz"))
    logits = torch.from_numpy(z[f"n{n}_logits"]).double().requires_grad_()
    labels = torch.from_numpy(z[f"n{n}_labels"]).long()
    loss = segmentation_loss(logits, labels)
    loss.backward()
    assert abs(float(loss.detach()) - float(z[f"n{n}_loss_f64"])) < 1e-6
    assert relative(logits.grad, z[f"n{n}_grad_f64"]) < 1e-5
    in_float32 = segmentation_loss(logits.detach().float(), labels)
    assert in_float32.dtype == torch.float32 and abs(float(in_float32) - float(z[f"n{n}_loss_f32"])) < 1e-5
    single = segmentation_loss(logits.detach()[:50], torch.full((50,), 4))
    assert abs(float(single) - float(z[f"n{n}_single_class_first50"])) < 1e-5


@pytest.mark.parametrize("n", [17, 20])
def test_the_scores(shared, n):
    z = np.load(shared("golden", "step", "E1_loss_metrics.npz"))
    confusion = ConfusionMatrix(n)
    labels, prediction = (torch.from_numpy(z[f"n{n}_{k}"]) for k in ("labels", "preds"))
    confusion.update(prediction, labels)
    assert np.array_equal(confusion.counts.numpy(), z[f"n{n}_confusion"])
    iou = confusion.iou().numpy() / 100
    assert np.isnan(iou[0])  # the ignored class has no score
    seen = ~np.isnan(iou)
    stored = np.concatenate(([np.nan], z[f"n{n}_IoU_ign0"].astype(float)[-(n - 1) :]))
    assert seen.sum() > 10 and np.allclose(iou[seen], stored[seen], atol=1e-5)
    assert np.isclose(confusion.mean_iou() / 100, stored[seen].mean(), atol=1e-6)
    # 0 is predicted, too
    assert np.isclose(confusion.mean_iou(absent=100.0) / 100, z[f"n{n}_mIoU_ign0"], atol=1e-6)


def lovasz_point_by_point(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Berman et al. 2018, algorithm 1, as written there: the sum over sorted errors times increments of the loss."""
    total, classes = 0.0, labels.unique().tolist()
    for c in classes:
        truth = labels == c
        errors = [abs(float(t) - float(p)) for t, p in zip(truth, probabilities[:, c], strict=True)]
        wrong, before = set(), 0.0
        for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
            wrong.add(i)
            right = sum(bool(t) and j not in wrong for j, t in enumerate(truth))
            union = sum(bool(t) or j in wrong for j, t in enumerate(truth))
            jaccard = 1 - right / union
            total, before = total + errors[i] * (jaccard - before), jaccard
    return total / len(classes)


@pytest.mark.parametrize(("points", "classes"), [(1, 3), (7, 2), (23, 5)])
def test_lovasz_is_its_definition(points, classes):
    generator = torch.Generator().manual_seed(points)
    probabilities = torch.randn(points, classes, generator=generator, dtype=torch.float64).softmax(1)
    labels = torch.randint(0, classes, (points,), generator=generator)
    assert abs(float(lovasz_softmax(probabilities, labels)) - lovasz_point_by_point(probabilities, labels)) < 1e-12


# E2: voxels and labels of a real frame


@pytest.mark.parametrize("frame", FRAMES)
def test_voxels_and_labels(shared, frame):
    z = np.load(shared("golden", "step", f"E2_{frame}.npz"))
    _, batch = open_frame(shared, frame)
    student = Student(
        StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.1, 1, 0.1)), 2, 0.1
    )
    x, voxels = student.voxels(batch)
    assert np.array_equal(batch.labels, z["point_labels"])
    # Rows are in an order of their own: compare by coordinate, and point by point
    ours, theirs = x.coordinates.numpy(), z["coords"].astype(np.int32)
    to_ours, to_theirs = np.lexsort(ours.T), np.lexsort(theirs.T)
    assert np.array_equal(ours[to_ours], theirs[to_theirs])
    assert np.array_equal(ours[voxels.inverse], theirs[z["inverse"]])
    assert np.array_equal(x.features.numpy()[to_ours], z["feats"][to_theirs])
    labels = batch.labels[voxels.first].numpy()
    assert np.array_equal(labels[to_ours], z["voxel_labels"][to_theirs])
    assert np.array_equal(np.bincount(labels, minlength=len(z["hist_voxel"])), z["hist_voxel"])


# E3: one step


@pytest.mark.parametrize(("frame", "dataset"), [("nuscenes0", "nuscenes"), ("kitti08", "kitti")])
def test_parameter_groups_and_learning_rates(shared, frame, dataset):
    """Our probe hands SGD only what is trained: a frozen tensor in a group gets no update there either."""
    student = seeded_student(17)
    names = {id(p): name for name, p in to_minkowski_names(student).items()}
    for stage, short in (("fewshot", "ft"), ("linprobe", "lp")):
        official = json.loads(shared("golden", "step", f"E3_groups_{short}_{frame}.json").read_text())
        learner, settings = learner_of(stage, student, dataset, lr=official["groups"][-1]["lr"])
        optimizer = make_optimizer(settings, learner.parameter_groups())
        wanted = {
            name: {k: group[k] for k in ("lr", "weight_decay", "momentum", "dampening")}
            for group in official["groups"]
            for name in group["names"]
            if name in official["trainable"]
        }
        ours = {
            names[id(p)]: {k: group[k] for k in ("lr", "weight_decay", "momentum", "dampening")}
            for group in optimizer.param_groups
            for p in group["params"]
        }
        assert ours == wanted


def to_minkowski_names(student: Student) -> dict[str, torch.nn.Parameter]:
    """The parameters by their names in the published code."""
    own = dict(student.network.named_parameters())
    tagged = to_minkowski({name: torch.full_like(p, i) for i, (name, p) in enumerate(own.items())})
    parameters = list(own.values())
    return {name: parameters[int(value.flatten()[0])] for name, value in tagged.items()}


@pytest.mark.parametrize("name", ["finetune_head2.0_trunk0.02_100epochs", "linear_probing_0.05_50epochs"])
def test_the_learning_rates_of_every_epoch(shared, name):
    schedule = np.array(json.loads(shared("golden", "step", "E_lr_schedules.json").read_text())[name])
    settings = validate(Linprobe, {"epochs": len(schedule)})
    ours = [rate_factor(settings, 3 * epoch, steps=3) * schedule[0] for epoch in range(len(schedule))]
    assert np.allclose(ours, schedule, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fine_tuning_step(shared, dtype):
    z = np.load(shared("golden", "step", "E3_ft_nuscenes0_f64.npz"))
    rows = torch.from_numpy(z["rows"])
    reader, batch, student, order = prepared(shared, "nuscenes0", dtype)
    learner, settings = learner_of("fewshot", student, "nuscenes", reader)
    optimizer = make_optimizer(settings, learner.train().parameter_groups())
    before = {name: p.detach().clone() for name, p in student.network.named_parameters()}

    outputs = []
    hook = student.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    loss = learner(batch).loss
    hook.remove()
    loss.backward()
    logits, voxels = outputs[0]
    labels = batch.labels[voxels.first]
    optimizer.step()
    exact = dtype == torch.float64
    assert int((labels > 0).sum()) == z["n_labelled"]
    assert relative(logits[order][rows], z["out"]) < (1e-6 if exact else 2e-5)
    assert relative(logits.sum(0), z["out_sum"]) < 2e-5
    assert abs(float(F.cross_entropy(logits[labels > 0], labels[labels > 0]).detach()) - z["ce"]) < 1e-5
    assert abs(float(loss.detach()) - z["loss"]) < 1e-5
    gradients = {name: p.grad for name, p in student.network.named_parameters()}
    assert_close(gradients, z, "grad", *((1e-5, 1e-5) if exact else (4e-2, 1e-2)))
    statistics = {name: b for name, b in student.network.named_buffers() if "running" in name}
    assert_close(statistics, z, "bn1", 2e-5, 2e-5)
    parameters = dict(student.network.named_parameters())
    assert_close(parameters, z, "param1", 1e-4, 1e-4)
    changes = {name: p.detach() - before[name] for name, p in parameters.items()}
    assert_close(changes, z, "delta1", *((1e-5, 1e-5) if exact else (4e-2, 1e-2)))
    final = student.network.final
    for key, tensor in (("kernel", final.weight), ("bias", final.bias)):
        assert relative(tensor.grad.reshape(z[f"gradfull/final.{key}"].shape), z[f"gradfull/final.{key}"]) < 2e-5
        assert relative(tensor.reshape(z[f"param1full/final.{key}"].shape), z[f"param1full/final.{key}"]) < 1e-4
    with torch.no_grad():
        assert abs(float(learner(batch).loss) - z["loss_after"]) < 1e-4
    assert_validated(learner, batch, z)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "golden", "dtype"),
    [
        ("nuscenes0", "nuscenes0_f64", torch.float32),
        ("nuscenes0", "nuscenes0_f64", torch.float64),
        ("kitti08_000000", "kitti08_000000_f32", torch.float32),
    ],
)
def test_a_probing_step(shared, frame, golden, dtype):
    z = np.load(shared("golden", "step", f"E3_lp_{golden}.npz"))
    reader, batch, student, order = prepared(shared, frame, dtype)
    frozen = {name: value.clone() for name, value in student.network.state_dict().items() if "final" not in name}
    learner, settings = learner_of("linprobe", student, FRAMES[frame][0], reader)
    optimizer = make_optimizer(settings, learner.train().parameter_groups())
    assert set(learner.state_dict()) == {"head.weight", "head.bias"}
    head = student.network.final
    before = {"final.weight": head.weight.detach().clone(), "final.bias": head.bias.detach().clone()}

    logits, labels = learner.logits(batch)
    loss = learner(batch).loss
    loss.backward()
    optimizer.step()
    assert int((labels > 0).sum()) == z["n_labelled"]
    assert relative(logits[order][torch.from_numpy(z["rows"])], z["out"]) < 2e-5
    assert abs(float(loss.detach()) - z["loss"]) < 1e-5
    parameters = {"final.weight": head.weight, "final.bias": head.bias}
    assert_close({name: p.grad for name, p in parameters.items()}, z, "grad", 2e-5, 2e-5)
    assert_close(parameters, z, "param1", 1e-5, 1e-5)
    assert_close({name: p - before[name] for name, p in parameters.items()}, z, "delta1", 1e-4, 2e-5)
    assert abs(float(learner(batch).loss.detach()) - z["loss_after"]) < 1e-4
    state = student.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in frozen.items())  # n_changed = 2: the last layer's
    assert_validated(learner, batch, z)


def prepared(shared, frame: str, dtype: torch.dtype) -> tuple[Reader, Batch, Student, torch.Tensor]:
    """The frame and the seeded student in `dtype`, and our voxel of each of the golden file's voxels."""
    z = np.load(shared("golden", "step", f"E2_{frame}.npz"))
    reader, batch = open_frame(shared, frame)
    student = seeded_student(len(z["hist_point"]))
    _, voxels = student.voxels(batch)
    batch.features = batch.features.to(dtype)
    order = torch.empty(len(z["coords"]), dtype=torch.int64)
    order[torch.from_numpy(z["inverse"]).long()] = voxels.inverse.long()
    return reader, batch, student.to(dtype), order


def assert_validated(learner: FineTuning | LinearProbe, batch: Batch, z) -> None:
    """Validation after the step: the same prediction at all points but those between two classes."""
    with torch.no_grad():
        logits, labels = learner.eval().logits(batch)
        assert abs(float(segmentation_loss(logits, labels)) - z["val_loss"]) < 1e-3
    scores = learner.task.evaluate([batch])
    confusion = ConfusionMatrix(len(z["c_matrix"]))
    confusion.counts = torch.tensor(scores.details["confusion"])
    moved = np.abs(confusion.counts.numpy() - z["c_matrix"]).sum() / 2
    assert moved <= (0 if logits.dtype == torch.float64 else 1e-4 * z["c_matrix"].sum())
    assert abs(confusion.mean_iou(absent=100.0) / 100 - z["mIoU"]) < 1e-3
    iou = np.nan_to_num(np.array(list(scores.figures.values())[:-1]) / 100, nan=1.0)
    assert np.abs(iou - z["IoU"]).max() < 1e-3
    counts = (
        confusion.counts[1:].double().numpy()
    )  # the original weighs classes by union, ours by how many are labelled
    union = counts.sum(1) + counts.sum(0)[1:] - counts[:, 1:].diagonal()
    assert abs((iou * union).sum() / union.sum() - z["fwIoU"]) < 1e-3
