"""Classes by example images, as commands on a tiny world."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import slidr
from data.datasets import open_reader
from data.frame import Needs
from slidr.networks.model_file import backbone_weights, write_model
from slidr.networks.student import Student, StudentSpec
from slidr.tasks.examples import logistic_regression
from slidr.tasks.segmentation import ConfusionMatrix
from slidr.teachers import load_teacher

SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))
WORDS = ["zeroshot", "--root=world", "--workers=0", "--crop=16,16", "--name=r"]
RUN = Path("output/zeroshot/r")


def layer(out: int, into: int) -> list[dict[str, torch.Tensor]]:
    return [{"weight": torch.randn(out, into), "bias": torch.randn(out)}]


@pytest.fixture
def weights(command) -> int:
    """slidr.pt has heads of both sides, scalr.pt one into the teacher's own space, lidar.pt no images; the teacher's
    channels."""
    torch.manual_seed(1)
    teacher = load_teacher("resnet_small", "random")
    parts = {"stage": "pretrain", "spec": SPEC, "backbone": backbone_weights(Student(SPEC, None, 0.05))}
    own = {"point_head": layer(teacher.channels, 24), "image_head": []}
    write_model("slidr.pt", **parts, point_head=layer(8, 24), image_head=layer(8, teacher.channels),
                teacher=teacher.identity())  # fmt: skip
    write_model("scalr.pt", **parts, **own, teacher=teacher.identity())
    write_model("lidar.pt", **parts, point_head=layer(8, 24))
    write_model("other.pt", **parts, point_head=layer(9, 24), image_head=[], teacher=teacher.identity())
    return teacher.channels


def draw(name: str, count: int, folder: Path = Path("examples")) -> None:
    """Noise of a brightness of its own."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    for i in range(count):
        image = rng.integers(0, 25 * len(name), (20 + i, 30, 3), np.uint8)
        Image.fromarray(image).save(folder / name / f"{i}.{'png' if i else 'jpg'}")


def confusion() -> np.ndarray:
    return np.array(json.loads((RUN / "scores.json").read_text())["details"]["confusion"])


@pytest.mark.parametrize("model", ["slidr", "scalr"])
def test_it_runs_out_of_the_box_and_says_what_that_is(command, weights, model):
    code, out, err = command(*WORDS, f"--weights={model}.pt", "--per_class=3")
    assert code == 0, err
    report = (RUN / "report.md").read_text()
    for text in (out, report):
        assert "a self-test of the machinery" in text and "(auto)" in text and "No label" not in text
        assert "mIoU" in text and "Never predicted, for lack of examples: " in text
    for name in ("birds_eye_0.png", "camera_0.png", "classes.png", "scores.csv"):
        assert (RUN / name).stat().st_size > 0
    never = report.split("lack of examples: ")[1].split(".")[0].split(", ")
    names = open_reader("synthetic", Path("world"), "val").dataset.classes
    predicted = confusion().sum(0)
    assert (
        0 < len(never) < 15 and predicted[1:].sum() > 0 and not predicted[[names.index(name) for name in never]].any()
    )
    before = confusion()
    words = ["evaluate", "--root=world", "--workers=0", f"--weights={RUN}/model.pt", "--pictures=0", "--name=r"]
    assert command(*words)[0] == 0  # a network with classes like any other
    scores = json.loads(Path("output/evaluate/r/scores.json").read_text())
    assert np.array_equal(scores["details"]["confusion"], before)
    own, network = slidr.load(f"{model}.pt"), slidr.load(RUN / "model.pt")
    points = open_reader("synthetic", Path("world"), "val").read(0, Needs()).points
    assert own(points).equal(network(points))
    assert set(network(points, head=True).unique().tolist()) <= set(np.flatnonzero(before.sum(0)).tolist())
    code, out, err = command("view", "--root=world", f"--weights={RUN}/model.pt", "--crop=16,16")
    assert code == 0, err
    assert '"predicted":[[' in Path("output/view/synthetic/val_0.html").read_text()
    assert command("zeroshot", RUN / "config.yaml", "--name=again")[0] == 0
    scores = json.loads(Path("output/zeroshot/again/scores.json").read_text())
    assert np.array_equal(scores["details"]["confusion"], before)


def test_a_folder_of_images(command, weights):
    for name in ("car", "vegetation", "pedestrian"):
        draw(name, 3)
    Path("examples/.DS_Store").write_text("")
    code, out, err = command(*WORDS, "--weights=slidr.pt", "--prototypes=examples", "--pictures=0")
    assert code == 0, err
    assert "9 images of 3 classes (examples)" in out and "No label of a point was used" in out
    assert "self-test" not in out and "for lack of examples: barrier, bicycle" in out
    assert np.flatnonzero(confusion().sum(0)).size <= 4  # of them alone, and 0 where a point is NaN


@pytest.mark.parametrize("model", ["slidr", "scalr"])
def test_features_from_a_file_and_scores_by_hand(command, weights, model):
    """The teacher's features, through the image head if there is one, tell each point its class."""
    reader = open_reader("synthetic", Path("world"), "val")
    frame, classes = reader.read(0, Needs(labels=True)), reader.dataset.classes
    ids = [classes.index(name) for name in ("car", "bus", "vegetation", "manmade")]
    rows = {classes[i]: torch.randn(20 + 9 * i, weights) + torch.randn(weights) for i in ids}
    np.savez("some.npz", **{name: value.numpy() for name, value in rows.items()})
    torch.save(rows, "some.pt")

    seen = torch.cat([*rows.values()])
    for head in torch.load(f"{model}.pt", weights_only=True)["image_head"]:
        seen = seen @ head["weight"].T + head["bias"]
    labels = torch.arange(len(ids)).repeat_interleave(torch.tensor([len(value) for value in rows.values()]))
    weight, bias = logistic_regression(seen / seen.norm(dim=1, keepdim=True), labels)
    features = slidr.load(f"{model}.pt")(frame.points)
    prediction = torch.tensor(ids)[(features.double() @ weight.T + bias).argmax(1)]
    assert len(prediction.unique()) > 1
    right = ((seen / seen.norm(dim=1, keepdim=True)).double() @ weight.T + bias).argmax(1) == labels
    matrix = ConfusionMatrix(len(classes))
    matrix.update(prediction, torch.from_numpy(frame.labels))
    for name in ("some.npz", "some.pt"):
        code, out, err = command(
            *WORDS[:-1], f"--weights={model}.pt", f"--prototypes={name}", "--pictures=0", "--name=r"
        )
        assert code == 0, err
        assert f"{len(seen)} features of 4 classes in {name}" in out
        assert f"Of their own features {100 * right.float().mean():.0f} % are told right." in out
        differing = abs(matrix.counts.numpy() - confusion()).sum()
        assert differing <= 0.002 * len(frame.points)  # float32 between two classes
        shutil.rmtree(RUN)


def test_what_are_no_examples(command, weights):
    words = [*WORDS, "--weights=scalr.pt", "--prototypes=examples"]
    assert "`prototypes` cannot be examples: it is auto, a folder" in command.refused(*words)
    Path("examples").mkdir()
    assert "examples of 0 classes" in command.refused(*words)
    draw("car", 2)
    assert "examples of 1 classes, to tell apart there must be two" in command.refused(*words)
    draw("bus", 1)
    assert "examples/bus holds 1 of at least 2 images" in command.refused(*words)
    draw("bus", 2)
    draw("cat", 2)
    sentence = command.refused(*words)
    assert "`cat` is no class of the data set; its classes are barrier, bicycle" in sentence
    Path("examples/cat").rename(".cat")
    Path("examples/bus/0.jpg").write_bytes(Path("examples/bus/0.jpg").read_bytes()[:40])
    assert "examples/bus/0.jpg" in command.refused(*words)
    draw("bus", 2)
    sentence = command.refused(*words, "--weights=other.pt")
    assert f"resnet_small gives {weights} numbers a patch" in sentence and "takes 9" in sentence
    assert "lidar.pt has learned nothing of images" in command.refused(*words, "--weights=lidar.pt")
    assert "other.pth" in command.refused(*words, "--teacher_weights=other.pth")
    assert "there is no pretraining" in command.refused(*WORDS)
    assert not Path("output/zeroshot").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"car": np.ones((3, 5)), "bus": np.ones((3, 5))}, "`car` in some.npz gives 5 numbers a patch"),
        ({"car": np.ones((1, 64)), "bus": np.ones((3, 64))}, "`car` is no array [n, C] of at least 2 rows"),
        ({"car": np.ones((3, 64), int), "bus": np.ones((3, 64))}, "`car` is no weight but torch.int64"),
        ({"car": np.full((3, 64), np.nan), "bus": np.ones((3, 64))}, "`car` holds NaN or infinity"),
        ({"car": np.array([object()]), "bus": np.ones((3, 64))}, "some.npz cannot be read as .npz"),
        ({"cat": np.ones((3, 64))}, "`cat` is no class of the data set"),
        ({"car": np.ones((3, 64))}, "examples of 1 classes"),
    ],
)
def test_what_are_no_features(command, weights, rows, said):
    np.savez("some.npz", **rows)
    assert said in command.refused(*WORDS, "--weights=scalr.pt", "--prototypes=some.npz")
    assert not Path("output/zeroshot").exists()
