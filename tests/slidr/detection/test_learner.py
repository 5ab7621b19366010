"""The learner's contract, the task's scores, and the detector in model.pt."""

import numpy as np
import pytest
import torch

from data.boxes import Boxes, Detections
from data.files import InputError
from data.frame import Frame, collate
from slidr import config
from slidr.networks.detector import Detector, DetectorSpec
from slidr.networks.model_file import TaskRecord, load_detector, read_model
from slidr.networks.student import Student, StudentSpec
from slidr.tasks.detection import Detection, DetectionLearner
from slidr.tasks.detection.targets import REGRESSION_WEIGHT
from slidr.tensor_files import read_tensors, write_tensors
from slidr.training import make_optimizer

CLASSES = "car", "pedestrian"
SPEC = DetectorSpec(area=(-8.0, -8.0, 8.0, 8.0), cell=1.0, bev_channels=8, min_score=0.1, most_boxes=20)
STUDENT = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.5, 5.0, 0.5))


class Reader:
    """Two frames, each with a car of many points and a person of none."""

    intensity_scale, intensity_offset = 1.0, 0.0

    class dataset:
        boxes, metric = CLASSES, "nuscenes"

    def frame(self, name: str, seed: int) -> Frame:
        rng = np.random.default_rng(seed)
        points = np.column_stack((rng.uniform(-8, 8, (120, 3)), rng.random(120))).astype(np.float32)
        centre = [[3 - 5 * seed, 2, 0], [-4, 4.5, 0]]
        boxes = Boxes.of(centre, [[4, 2, 2], [1, 1, 2]], [0.5, -2], [0, 1], [20, 0])
        return Frame(name, points, boxes=boxes, ignore=Boxes.empty())


def learner(**values) -> DetectionLearner:
    torch.manual_seed(0)
    settings = config.validate(config.Detect, {"optimizer": "adamw", "lr": 0.01} | values)
    task = Detection(Detector(Student(STUDENT, None, 0.1), CLASSES, SPEC), Reader())
    return DetectionLearner(settings, task, TaskRecord(stage="detect", dataset="synthetic", pct=5.0))


def batch(*boxes: Boxes | None):
    frames = [Reader().frame(f"f{seed}", seed) for seed in range(2)]
    for frame, own in zip(frames, boxes, strict=False):
        frame.boxes = own
    return collate(frames)


@pytest.mark.parametrize("boxes", [(), (Boxes.empty(),), (Boxes.empty(), Boxes.empty())])
def test_a_step_trains_everything_whether_or_not_there_are_boxes(boxes):
    trained = learner().train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    step = trained(batch(*boxes))
    statistics = {name for name, value in trained.state_dict().items() if not torch.equal(before[name], value)}
    assert statistics and all("running_" in name or "num_batches" in name for name in statistics)
    assert torch.isclose(step.loss, step.numbers["heat"] + REGRESSION_WEIGHT * step.numbers["regression"])
    assert (float(step.numbers["regression"]) == 0) == (len(boxes) == 2)
    step.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.parameters())


def test_rates_and_boxes_without_points():
    groups = learner(lr_head=0.5).parameter_groups()
    assert [group["lr"] for group in groups] == [0.01, 0.5] and learner().parameter_groups()[1]["lr"] == 0.01
    assert sum(len(group["params"]) for group in groups) == len(list(learner().parameters()))
    full = batch()
    seen = [learner(min_points=points)(full).numbers["regression"] for points in (0, 1, 21)]
    assert seen[0] != seen[1] and seen[2] == 0  # persons without points; then cars of 20


def test_a_batch_that_was_read_without_boxes_is_refused():
    with pytest.raises(InputError, match="of the frames f0, f1 some have no boxes"):
        learner()(batch(None))


def test_what_was_learned_by_heart_is_found_and_scored():
    trained, data = learner(), batch()
    optimizer = make_optimizer(trained.settings, trained.parameter_groups())
    for _ in range(45):
        optimizer.zero_grad()
        trained.train()(data).loss.backward()
        optimizer.step()
    kept = {}
    scores = trained.task.evaluate([data], lambda name, found: kept.update({name: found}))
    assert (
        scores.figures["car"] == pytest.approx(100) and scores.primary == "mAP" and trained.best == ("val_mAP", "max")
    )
    for i, name in enumerate(("f0", "f1")):
        found: Detections = kept[name].select(kept[name].boxes.label == 0)
        truth = Reader().frame(name, i).boxes
        assert np.abs(found.boxes.centre[0] - truth.centre[0]).max() < 0.3
        assert abs(found.boxes.yaw[0] - truth.yaw[0]) < 0.3 and found.score[0] > 0.5


def test_model_pt_holds_the_detector(tmp_path):
    trained = learner()
    trained.write_model(tmp_path / "model.pt")
    model = read_model(tmp_path / "model.pt")
    assert model.detector.classes == CLASSES and model.detector.spec == SPEC and model.classes == ()
    detector = load_detector(model, tmp_path / "model.pt").eval()
    with torch.no_grad():
        ours, theirs = (network(batch()) for network in (detector, trained.detector.eval()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    content = read_tensors(tmp_path / "model.pt")
    del content["detector"]
    write_tensors(tmp_path / "old.pt", content)  # as files were before there were detectors
    with pytest.raises(InputError, match="comes from detect and has no head for boxes; name a model.pt of detect"):
        load_detector(read_model(tmp_path / "old.pt"), tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda part: part["weights"].pop("last.bias"), "the key `last.bias` is missing"),
        (lambda part: part["weights"].update({"last.bias": torch.zeros(3)}), r"`last.bias` has shape \[3\]"),
        (lambda part: part["weights"].update({"last.bias": torch.full((10,), torch.nan)}), "NaN or infinity"),
        (lambda part: part.update(classes=["\x1b[31m"]), "is no model.pt"),
        (lambda part: part["spec"].update(cell=1e-9), "is no model.pt"),
        (lambda part: part["spec"].update(bev_channels=4000), r"`coarse.0.layers.0.weight` has shape"),
    ],
)
def test_a_damaged_detector_is_refused_in_a_sentence(tmp_path, change, says):
    path = tmp_path / "model.pt"
    learner().write_model(path)
    content = read_tensors(path)
    change(content["detector"])
    write_tensors(path, content)
    with pytest.raises(InputError, match=says):
        load_detector(read_model(path), path)
