"""What `run.py export` writes is the backbone that OpenPCDet asks for; tested by its tensors, without OpenPCDet."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import slidr
from slidr.networks.model_file import backbone_weights, write_model
from slidr.networks.student import Student, StudentSpec

SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))


@pytest.fixture
def folder(command) -> Path:
    """Files of a small network."""
    torch.manual_seed(0)
    Path("it's").mkdir()
    student = Student(SPEC, 5, 0.1)
    write_model(Path("it's/model.pt"), stage="pretrain", spec=SPEC, backbone=backbone_weights(student))
    code, out, err = command("export", "--to", "openpcdet", "--output=it's/for openpcdet", "--weights=it's/model.pt")
    assert code == 0, err
    assert "res16unet14c x 0.25" in out and "README.md" in out
    return Path("it's/for openpcdet")


def merged(base: dict, new: dict) -> dict:
    """How OpenPCDet puts one configuration on another: dictionaries merge, all else is replaced."""
    for name, value in new.items():
        base[name] = merged(base.get(name, {}), value) if isinstance(value, dict) else value
    return base


def test_the_backbone_keeps_its_contract(folder):
    spec = importlib.util.spec_from_file_location("slidr_unet", folder / "slidr_unet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = merged(
        {"NAME": "PointRCNN", "BACKBONE_3D": {"NAME": "PointNet2MSG"}, "ROI_HEAD": {"XYZ_UP_LAYER": [128, 128]}},
        yaml.safe_load((folder / "pointrcnn_slidr.yaml").read_text())["MODEL"],
    )
    settings = model["BACKBONE_3D"]
    assert settings["NAME"] == "SlidrUNet" and model["NAME"] == "PointRCNN" and settings["INTENSITY_OFFSET"] == 1
    what = {"grid_size": [1, 2, 3], "voxel_size": [0.05, 0.05, 0.1], "point_cloud_range": [0, -40, -3, 70.4, 40, 1]}
    backbone = module.SlidrUNet(model_cfg=settings, input_channels=4, **what)
    assert backbone.num_point_features == 24 == model["ROI_HEAD"]["XYZ_UP_LAYER"][-1]

    rng = np.random.default_rng(0)
    clouds = [np.column_stack((rng.uniform(-20, 20, (n, 3)), rng.random(n))).astype(np.float32) for n in (300, 200)]
    index = np.repeat([0, 1], [300, 200])[:, None].astype(np.float32)
    points = torch.from_numpy(np.hstack((index, np.concatenate(clouds))))
    given = {"batch_size": 2, "points": points, "gt_boxes": "kept"}
    out = backbone.eval()(dict(given))
    assert out.keys() == given.keys() | {"point_features", "point_coords"} and out["gt_boxes"] == "kept"
    assert out["point_features"].shape == (500, 24) and out["point_features"].dtype == torch.float32
    assert torch.equal(out["point_coords"], points[:, :4])
    network = slidr.load(folder / "model.pt")
    for i, cloud in enumerate(clouds):
        alone = network(cloud + np.array([0, 0, 0, 1], np.float32), features="backbone")
        assert torch.allclose(out["point_features"][index[:, 0] == i], alone, atol=1e-4)
    backbone.train()(dict(given))["point_features"].square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_the_page_names_what_is_there(folder):
    text = (folder / "README.md").read_text()
    assert "@" not in text and f"'{folder.resolve()}'".replace("it's", "it'\"'\"'s") in text
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["README.md", "model.pt", "pointrcnn_slidr.yaml", "slidr_unet.py"]
    processors = yaml.safe_load((folder / "pointrcnn_slidr.yaml").read_text())["DATA_CONFIG"]
    assert processors["DATA_AUGMENTOR"]["DISABLE_AUG_LIST"] == ["gt_sampling"]
    counts = [step.get("NUM_POINTS") for step in processors["DATA_PROCESSOR"]]
    assert {"train": 16384, "test": 16384} in counts  # PointRCNN's second stage wants equally many points a frame


def test_what_cannot_be_exported(command):
    assert "there is no pretraining under output" in command.refused("export", "--output=x")
    assert "`--output` is needed" in command.refused("export")
    Path("a.pt").write_text("no network")
    assert "a.pt" in command.refused("export", "--output=x", "--weights=a.pt")
