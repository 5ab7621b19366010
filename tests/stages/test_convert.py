"""Public checkpoints in, ours out, and back: every layout, every key, every value."""

import ast
from pathlib import Path

import pytest
import torch

import slidr
from slidr.networks.minkunet import BLOCKS, UNREAD, MinkUNet, to_minkowski

SMALL = ["--architecture=res16unet14c", "--width=0.25", "--voxel_size=[0.2, 1, 0.2]"]


def published() -> dict[str, torch.Tensor]:
    """A small student's weights in the published layout, counters included as the original's state dict has them."""
    torch.manual_seed(0)
    weights = to_minkowski(MinkUNet(64, "res16unet14c", width=0.25).state_dict())
    return weights | {"bn0.bn" + UNREAD: torch.tensor(7)}


def images(prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}encoder.conv1.weight": torch.zeros(2), f"{prefix}decoder.0.bias": torch.zeros(3)}


def prefixed(prefix: str, weights: dict) -> dict:
    return {prefix + key: value for key, value in weights.items()}


LAYOUTS = {
    "bare": (lambda w: w, 1),
    "published": (lambda w: {"model_points": w}, 1),
    "raw 2D+3D": (lambda w: {"model_points": w, "model_images": images(), "epoch": 50, "config": {"lr": 0.5}}, 1),
    "Lightning": (lambda w: {"state_dict": prefixed("model_points.", w) | images("model_images."), "epoch": 1}, 3),
    "several GPUs": (lambda w: {"model_points": prefixed("module.", w)}, 1),
    "downstream": (lambda w: {"state_dict": prefixed("model.", w)}, 1),
    "encoder": (lambda w: {"model": prefixed("encoder.", w)}, 1),
    "DepthContrast": (lambda w: {"model": prefixed("module.trunk.2.", w) | {"module.trunk.0.w": torch.ones(2)}}, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_there_and_back_is_exact(command, layout):
    weights = published()
    content, others = LAYOUTS[layout]
    torch.save(content(weights), "theirs.pt")
    code, out, err = command("convert", "--source=theirs.pt", "--target=ours.pt", *SMALL)
    assert code == 0, err
    kept = {key: value for key, value in weights.items() if not key.endswith(UNREAD)}
    assert f"{len(kept)} tensors of the lidar network, {others} of other networks and counters left out" in out
    ours = torch.load("ours.pt", weights_only=True)
    assert ours["spec"]["width"] == 0.25 and ours["spec"]["voxel_size"] == [0.2, 1, 0.2]
    assert ours["format"] == 2 and not ours["class_head"] and "final.weight" not in ours["backbone"]
    (head,) = ours["point_head"]
    assert torch.equal(head["weight"].T, weights["final.kernel"]) and torch.equal(
        head["bias"], weights["final.bias"][0]
    )
    assert command("convert", "--source=ours.pt", "--target=back.pt", "--to=minkowski")[0] == 0
    back = torch.load("back.pt", weights_only=True)["model_points"]
    assert back.keys() == kept.keys() and all(torch.equal(back[key], value) for key, value in kept.items())


def test_the_published_network_itself(command, shared):
    """Without options: all keys and shapes of the published file (its 62 counters apart), and out again under the same.

    Batch norm fills in counters that a plain dictionary lacks, so the original loads the result strictly.
    """
    _, *lines = shared("golden", "official_state_dict_keys.txt").read_text().splitlines()
    shapes = {key: ast.literal_eval(shape) for key, shape in (line.split(" ", 1) for line in lines)}
    weights = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(shapes.items())}
    torch.save({"model_points": weights}, "theirs.pt")
    code, out, err = command("convert", "--source=theirs.pt", "--target=ours.pt")
    assert code == 0, err
    assert f"{len(shapes)} tensors" in out and "left out" not in out
    assert command("convert", "--source=ours.pt", "--target=back.pt", "--to=minkowski")[0] == 0
    back = torch.load("back.pt", weights_only=True)["model_points"]
    assert {key: tuple(value.shape) for key, value in back.items()} == shapes
    assert all(torch.equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block4.0.conv1.kernel": torch.zeros(27, 5, 64)}, ["`block4.0.conv1.kernel` has shape [27, 5, 64]", "needs"]),
        ({"conv0p1s1.kernel": torch.zeros(125, 1, 8)}, ["`conv0p1s1.kernel` has shape [125, 1, 8]", "[27, 1, 8]"]),
        ({"bn3.bn.running_var": None}, ["lacks the key `bn3.bn.running_var`"]),
        ({"final.kernel": None}, ["lacks the key `final.kernel`"]),
        ({"block1.7.conv1.kernel": torch.zeros(27, 8, 8)}, ["`block1.7.conv1.kernel`, which no res16unet14c has"]),
        ({"layer1.0.conv1.weight": torch.zeros(1)}, ["`layer1.0.conv1.weight` is no layer of a Res16UNet"]),
        ({"bn0.bn.weight": "text"}, ["`bn0.bn.weight` is no layer"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_key(command, change, words):
    weights = {key: value for key, value in (published() | change).items() if value is not None}
    torch.save({"model_points": weights}, "theirs.pt")
    sentence = command.refused("convert", "--source=theirs.pt", "--target=ours.pt", *SMALL)
    assert all(word in sentence for word in words) and not Path("ours.pt").exists()


def test_another_architecture_than_the_files(command):
    torch.save(published(), "theirs.pt")
    words = ["convert", "--source=theirs.pt", "--target=ours.pt"]
    assert "--architecture" in command.refused(*words, "--architecture=res16unet18c")
    assert "--width 0.5 needs" in command.refused(*words, "--width=0.5")
    torch.save({k: v for k, v in published().items() if not k.startswith("block8.")}, "theirs.pt")
    assert "(1, 1, 1, 1, 1, 1, 1, 0) blocks" in command.refused(*words)


@pytest.mark.parametrize("architecture", BLOCKS)
@pytest.mark.parametrize("width", [0.03, 0.25, 0.3])
def test_architecture_and_width_are_those_of_the_shapes(command, architecture, width):
    torch.save(to_minkowski(MinkUNet(64, architecture, width=width).state_dict()), "theirs.pt")
    code, out, err = command("convert", "--source=theirs.pt", "--target=ours.pt")
    assert code == 0 and f"{architecture} of width" in out and "64 features" in out, err
    network = slidr.load("ours.pt")
    assert network.student.network.channels == max(8, round(96 * width / 8) * 8)


@pytest.mark.parametrize(("classes", "dataset"), [(17, "nuscenes"), (20, "kitti")])
def test_a_fine_tuned_network_keeps_its_classes_and_is_scored(command, classes, dataset):
    torch.manual_seed(0)
    network = MinkUNet(classes, "res16unet14c", width=0.25)
    torch.save({"state_dict": prefixed("model.", to_minkowski(network.state_dict()))}, "theirs.pt")
    code, out, err = command("convert", "--source=theirs.pt", "--target=ours.pt")
    assert code == 0 and f"{classes} classes of {dataset}" in out, err
    words = ["evaluate", "--weights=ours.pt", f"--dataset={dataset}", "--workers=0", "--pictures=0", "--name=e"]
    code, out, err = command(*words, f"--root=world/{dataset}")
    assert code == 0 and "mIoU" in out, err
    other = "kitti" if classes == 17 else "nuscenes"
    sentence = command.refused("convert", "--source=theirs.pt", "--target=x.pt", f"--dataset={other}")
    assert f"gives {classes} numbers a voxel" in sentence


@pytest.mark.parametrize(
    "change", [torch.Tensor.int, torch.Tensor.bool, lambda t: t / 0, lambda t: t.to(torch.complex64)]
)
def test_weights_that_are_no_finite_numbers(command, change):
    torch.save(published() | {"conv0p1s1.kernel": change(published()["conv0p1s1.kernel"])}, "theirs.pt")
    assert "conv0p1s1.weight" in command.refused("convert", "--source=theirs.pt", "--target=ours.pt")
    torch.save(published() | {"module.conv0p1s1.kernel": published()["conv0p1s1.kernel"]}, "theirs.pt")
    assert "both mean `conv0p1s1.weight`" in command.refused("convert", "--source=theirs.pt", "--target=ours.pt")


def test_files_that_are_no_checkpoint(command):
    Path("noise.pt").write_bytes(b"noise")
    for to in ("ours", "minkowski"):
        assert "noise.pt" in command.refused("convert", "--source=noise.pt", "--target=x.pt", f"--to={to}")
        assert "nowhere.pt" in command.refused("convert", "--source=nowhere.pt", "--target=x.pt", f"--to={to}")
    torch.save(published(), "theirs.pt")
    assert "no model.pt" in command.refused("convert", "--source=theirs.pt", "--target=x.pt", "--to=minkowski")
    assert not Path("x.pt").exists()


def test_what_the_published_layout_has_no_place_for(command):
    """Classes have: they are its last layer. A head of several layers, or none, has not."""
    torch.save(published(), "theirs.pt")
    assert command("convert", "--source=theirs.pt", "--target=ours.pt", *SMALL)[0] == 0
    content = torch.load("ours.pt", weights_only=True)
    (head,) = content["point_head"]
    torch.save(content | {"class_head": [{"weight": head["weight"][:3], "bias": head["bias"][:3]}]}, "classes.pt")
    assert command("convert", "--source=classes.pt", "--target=back.pt", "--to=minkowski")[0] == 0
    back = torch.load("back.pt", weights_only=True)["model_points"]
    assert torch.equal(back["final.kernel"], head["weight"][:3].T)
    further = {"weight": torch.zeros(5, 64), "bias": torch.zeros(5)}
    for layers in ([], [head, further]):
        torch.save(content | {"point_head": layers}, "other.pt")
        sentence = command.refused("convert", "--source=other.pt", "--target=x.pt", "--to=minkowski")
        assert f"a head of {len(layers)} layers" in sentence and not Path("x.pt").exists()
