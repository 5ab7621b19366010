"""Everything a user can get wrong: one sentence, exit code 2, nothing half-written."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slidr.teachers import load_teacher
from tests.stages.conftest import SMALL

PRETRAIN = ["pretrain", "--root=world", "--name=run", *SMALL]
KITTI = ["--dataset=kitti", "--root=world/kitti", "--epochs=1", "--workers=0", "--name=run"]
FEWSHOT = ["fewshot", "--weights=random", "--pct=100", "--architecture=res16unet14c", "--width=0.25", *KITTI]
SEQUENCE = Path("world/kitti/dataset/sequences/00")


def first(pattern: str) -> Path:
    return sorted(Path("world").rglob(pattern))[0]


def nothing_half_written() -> None:
    """No temporary file is left behind, and no model was claimed."""
    assert not [path for path in Path().rglob(".*") if path.is_file()]
    assert not list(Path().rglob("model.pt"))


def test_a_missing_data_set_says_how_to_get_it_and_what_runs_without(command):
    sentence = command.refused("fewshot", "--dataset", "kitti", "--pct", "1", "--weights", "random")
    assert "datasets/semantic_kitti" in sentence
    assert "semantic-kitti.org" in sentence and "--dataset synthetic" in sentence
    assert not Path("output").exists()


def test_a_truncated_point_file(command):
    path = first("*.pcd.bin")
    path.write_bytes(path.read_bytes()[:-3])
    assert "truncated" in command.refused(*PRETRAIN)
    nothing_half_written()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_file_of_the_wrong_length(command, workers):
    path = SEQUENCE / "labels/000000.label"
    path.write_bytes(path.read_bytes()[:-4])
    sentence = command.refused(*FEWSHOT, f"--workers={workers}")
    assert "000000.label" in sentence and "labels" in sentence
    nothing_half_written()


def test_a_scan_of_nothing_finite(command):
    path = SEQUENCE / "velodyne/000000.bin"
    np.full_like(np.fromfile(path, np.float32), np.nan).tofile(path)
    assert "000000.bin has NaN or infinity in" in command.refused(*FEWSHOT)
    nothing_half_written()


def test_an_image_that_does_not_decode(command):
    path = first("*.jpg")
    path.write_bytes(path.read_bytes()[:50])
    assert path.name in command.refused("pretrain", "--root=world", *SMALL, "--batch=2")
    nothing_half_written()


def test_a_calibration_with_a_missing_key(command):
    path = SEQUENCE / "calib.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("Tr")))
    sentence = command.refused("pretrain", *KITTI, "--teacher=resnet_small", "--teacher_weights=random")
    assert "calib.txt" in sentence and "Tr" in sentence
    nothing_half_written()


def test_an_empty_cloud_in_a_batch_is_no_error(command):
    (SEQUENCE / "velodyne/000000.bin").write_bytes(b"")
    (SEQUENCE / "labels/000000.label").write_bytes(b"")
    code, _, err = command(*FEWSHOT, "--batch=2")
    assert code == 0, err


def test_images_with_no_pairs_are_no_error(command):
    """Every point lies behind the only camera: the loss is zero, the run goes on."""
    for path in Path("world/kitti").rglob("*.bin"):
        points = np.fromfile(path, np.float32).reshape(-1, 4)
        points[:, 0] = -np.abs(points[:, 0]) - 1
        points.tofile(path)
    words = ["--teacher=resnet_small", "--teacher_weights=random", "--architecture=res16unet14c", *SMALL]
    code, _, err = command("pretrain", *KITTI, *words)
    assert code == 0, err


@pytest.mark.parametrize(
    ("text", "words"),
    [("bach: 4", "did you mean `batch`"), ("batch: four", "`batch`"), ("batch: -1", "greater than or equal to 1")],
)
def test_a_bad_recipe(command, text, words):
    Path("mine.yaml").write_text(text)
    assert words in command.refused("pretrain", "mine.yaml")
    assert not Path("output").exists()


def test_weights_of_another_architecture(command):
    assert command(*PRETRAIN)[0] == 0
    words = ["linprobe", "--root=world", "--weights=output/pretrain/run/model.pt", "--workers=0"]
    sentence = command.refused(*words, "--architecture=res16unet34c")
    assert "res16unet14c" in sentence and "res16unet34c" in sentence
    sentence = command.refused(*words, "--voxel_size=[0.3,1,0.2]")
    assert "voxel_size" in sentence and "(0.3, 1.0, 0.2)" in sentence and "(0.2, 1.0, 0.2)" in sentence
    assert not Path("output/linprobe").exists()


def test_weights_of_another_grid_or_input_feature(command):
    assert command(*PRETRAIN)[0] == 0
    path = Path("output/pretrain/run/model.pt")
    for words in (["linprobe"], ["fewshot", "--pct=100"]):
        words = [*words, "--root=world", f"--weights={path}", "--workers=0"]
        sentence = command.refused(*words, "--grid=cartesian")
        assert "grid cylindrical" in sentence and "cartesian" in sentence
        assert "width 0.25" in command.refused(*words, "--width=0.5") and "0.5" in command.refused(
            *words, "--width=0.5"
        )
    content = torch.load(path, weights_only=True)
    content["input"]["columns"] = ["x", "y", "z", "intensity", "height"]
    torch.save(content, "other.pt")
    sentence = command.refused("linprobe", "--root=world", "--weights=other.pt", "--workers=0")
    assert "takes x, y, z, intensity, height of a point" in sentence and "x, y, z, intensity" in sentence
    assert not Path("output/linprobe").exists()


@pytest.mark.parametrize("pct", [0, 101, -1, "nan", "many"])
def test_a_share_that_is_none(command, pct):
    assert f"`pct` cannot be '{pct}': " in command.refused("fewshot", f"--pct={pct}")
    assert "`sweep` cannot be" in command.refused("fewshot", f"--sweep=1,{pct}")
    assert not Path("output").exists()


def test_labels_outside_the_table(command):
    path = SEQUENCE / "labels/000000.label"
    labels = np.fromfile(path, np.uint32)
    labels[3] = 77
    labels.tofile(path)
    sentence = command.refused(*FEWSHOT)
    assert "000000.label" in sentence and "label 77" in sentence
    nothing_half_written()


def test_a_subset_that_is_empty_or_unknown(command):
    Path("empty.txt").write_text("# nothing\n")
    assert "empty.txt names no frame" in command.refused(*FEWSHOT, "--subset=empty.txt")
    Path("other.txt").write_text("99_000000\n")
    assert "`99_000000`" in command.refused(*FEWSHOT, "--subset=other.txt")
    assert "`subset` cannot be 'scans'" in command.refused(*FEWSHOT, "--subset=scans")
    assert not Path("output").exists()


def test_weights_that_are_no_checkpoint(command):
    Path("noise.pt").write_bytes(os.urandom(100))
    assert "noise.pt" in command.refused("linprobe", "--root=world", "--weights=noise.pt")
    torch.save({"spec": {}}, "other.pt")
    assert "other.pt" in command.refused("linprobe", "--root=world", "--weights=other.pt")
    assert "nowhere.pt" in command.refused("linprobe", "--root=world", "--weights=nowhere.pt")


@pytest.mark.parametrize("stage", ["linprobe", "fewshot", "detect"])
def test_probing_without_a_pretraining(command, stage):
    """It is said before the built-in world is written."""
    assert "run.py pretrain" in command.refused(stage)
    assert "run.py pretrain" in command.refused(stage, "--seeds=2", "--name=s")
    if stage != "linprobe":
        assert "run.py pretrain" in command.refused(stage, "--sweep=1,10")
    assert not Path("datasets").exists()


def test_a_network_of_another_data_sets_classes(command):
    assert command(*FEWSHOT)[0] == 0
    words = ["evaluate", "--root=world", "--weights=output/fewshot/run/model.pt"]
    sentence = command.refused(*words)
    assert "20 classes" in sentence and "has 17" in sentence
    content = torch.load("output/fewshot/run/model.pt", weights_only=True)
    content["classes"] = content["classes"][:-1]
    torch.save(content, "fewer.pt")
    sentence = command.refused("evaluate", *KITTI[:2], "--weights=fewer.pt")
    assert "19 classes" in sentence and "has 20" in sentence


def test_a_read_only_output_folder(command):
    """Root may write anywhere, so a file stands where the folder should be: it fails for every user alike."""
    Path("output").write_text("")
    assert "output" in command.refused(*PRETRAIN)
    assert Path("output").read_text() == ""


def test_two_runs_of_one_name(command):
    words = ["synth", "--root=again", "--layout=kitti", "--train_scenes=1", "--val_scenes=1", "--frames_per_scene=1"]
    assert command(*words, "--image_scale=0.1", "--azimuths=64", "--workers=0")[0] == 0
    Path("output/pretrain/run").mkdir(parents=True)
    Path("output/pretrain/run/config.yaml").write_text("")
    assert "already holds a run" in command.refused(*PRETRAIN)


def test_a_superpixel_map_of_the_wrong_size(command):
    path = first("*.jpg")
    code, _, err = command("superpixels", "--root=world", "--segments=20", "--workers=0")
    assert code == 0, err
    maps = sorted(Path("superpixels/synthetic/superpixels_slic_20_6_1").glob("*.png"))
    for map_ in maps:
        Image.new("L", (7, 5)).save(map_)
    sentence = command.refused(*PRETRAIN)
    assert "5" in sentence and "7" in sentence and path.suffix == ".jpg"


def test_a_teacher_whose_patch_does_not_divide_the_crop(command):
    sentence = command.refused(*PRETRAIN, "--teacher=dinov2_vits14", "--crop=[60, 100]")
    assert "patch of 14 pixels" in sentence and "--crop" in sentence and "[56, 98]" in sentence
    nothing_half_written()
    assert not list(Path("output").glob("pretrain/*"))


def test_a_transformer_has_no_strides_to_keep(command):
    sentence = command.refused(*PRETRAIN, "--teacher=dinov2_vits14", "--dilated=false")
    assert "`dilated` cannot be false" in sentence
    nothing_half_written()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.update({"conv1.weight": torch.zeros(32, 3, 3, 3)}), "`conv1.weight` has shape [32, 3, 3, 3]"),
        (lambda w: w.pop("layer2.0.conv2.weight"), "lacks the key `layer2.0.conv2.weight`"),
        (lambda w: w.update({"layer3.0.conv1.weight": torch.zeros(1)}), "unknown key `layer3.0.conv1.weight`"),
    ],
)
def test_a_teachers_checkpoint_that_does_not_fit(command, change, words):
    weights = load_teacher("resnet_small", "random").network.state_dict()
    change(weights)
    torch.save({"state_dict": weights}, "teacher.pth")
    assert words in command.refused(*PRETRAIN, "--teacher_weights=teacher.pth")
    nothing_half_written()


def test_a_superpixel_map_that_does_not_decode(command):
    assert command("superpixels", "--root=world", "--segments=20", "--workers=0")[0] == 0
    for map_ in Path("superpixels/synthetic/superpixels_slic_20_6_1").glob("*.png"):
        map_.write_bytes(map_.read_bytes()[:40])
    assert "superpixel map" in command.refused(*PRETRAIN)
    nothing_half_written()


def test_a_device_that_is_not_there(command):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "--device cpu" in command.refused(*PRETRAIN, "--device=cuda")
