"""The nearest-neighbour film and similarity maps, as commands on a tiny world."""

import json
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import open_reader
from data.datasets.synthetic import write
from data.files import InputError
from data.frame import Needs
from slidr.networks.model_file import backbone_weights, head_layers, write_model
from slidr.networks.student import Student, StudentSpec
from slidr.similarity import choose_queries
from slidr.teachers import load_teacher

SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))


@pytest.fixture
def weights(command):
    """model.pt of a random student whose image head belongs to the random resnet_small."""
    torch.manual_seed(1)
    student, teacher = Student(SPEC, 8, 0.05), load_teacher("resnet_small", "random")
    head = [{"weight": torch.randn(8, teacher.channels), "bias": torch.zeros(8)}]
    parts = {"stage": "pretrain", "spec": SPEC, "backbone": backbone_weights(student)}
    write_model("model.pt", **parts, point_head=head_layers(student), image_head=head, teacher=teacher.identity())
    write_model("lidar.pt", **parts, point_head=head_layers(student))
    return "--weights=model.pt"


@pytest.fixture
def film_world(monkeypatch):
    """The film has four frames, written by one process."""
    monkeypatch.setattr(write, "FILM_FRAMES", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 0)


def test_the_film_of_the_built_in_world(command, weights, film_world):
    code, out, err = command("knn", "--root=world", weights, "--name=a", "--k=5", "--workers=0")
    assert code == 0, err
    folder = Path("output/knn/a")
    film = folder / "film.mp4"
    reader = imageio_ffmpeg.read_frames(str(film))
    about = next(reader)
    assert about["codec"] == "h264" and about["pix_fmt"].startswith("yuv420p")
    assert not about["size"][0] % 2 and not about["size"][1] % 2
    frames = sorted(path.name for path in (folder / "frames").iterdir())
    assert frames == [f"neighbours_000{i}.png" for i in (1, 2, 3)] and len(list(reader)) == 3
    content = film.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is whole
    assert Image.open(folder / "film.png").width > 600

    scores = json.loads((folder / "scores.json").read_text())
    figures = {name: value for name, value in scores["figures"].items() if value is not None}
    assert scores["primary"] == "mAP" and {"vegetation", "car", "mAP"} <= figures.keys()
    assert figures["mAP"] == pytest.approx(np.mean([v for name, v in figures.items() if name != "mAP"]))
    frames = scores["details"]["frames"]
    assert len(frames) == 3 and all(0 < frame["car"] <= 100 for frame in frames.values())
    assert "| AP (%) | model | random network |" in out and "at most 256 of a class" in out
    assert command("knn", "output/knn/a/config.yaml", "--name=b")[0] == 0
    assert json.loads(Path("output/knn/b/scores.json").read_text()) == scores


def test_the_film_enters_no_other_split(command, film_world):
    before = {path: path.read_bytes() for path in Path("world/nuscenes").rglob("*") if path.is_file()}
    splits = {split: open_reader("synthetic", Path("world"), split) for split in ("film", "train", "val", "all")}
    assert before == {path: path.read_bytes() for path in Path("world/nuscenes").rglob("*") if path.is_file()}
    film = set(splits["film"].ids)
    assert len(film) == 4 and not film & {name for split in ("train", "val", "all") for name in splits[split].ids}
    assert set(splits["film"].scenes) == set(splits["val"].scenes)
    steps = np.diff([splits["film"].pose(i)[:3, 3] for i in range(4)], axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 1.2, atol=0.1)  # 6 m/s, 0.2 s
    assert [view.name for view in splits["film"].read(0, Needs(cameras="all")).cameras] == ["CAM_FRONT"]


def test_a_film_of_the_kitti_layout_and_what_is_no_film(command, weights, film_world):
    words = ["knn", "--dataset=kitti", "--root=world/kitti", weights, "--name=k"]
    assert "every scene of the split `val` of kitti has one frame" in command.refused(*words)
    assert "has no scene `07`" in command.refused(*words, "--scene=07")
    assert "the scene `08` has one frame" in command.refused(*words, "--scene=08")
    words = ["knn", "--root=world", weights]
    assert "has no class `person`; it has barrier" in command.refused(*words, "--classes=person")
    assert "labelled points to find 100000 neighbours" in command.refused(*words, "--k=100000")
    assert "`classes` cannot be" in command.refused(*words, "--classes=car,bus,truck,trailer")
    assert "there is no pretraining" in command.refused("knn", "--root=world")


def test_similarity_maps_for_queries(command, weights):
    words = ["show", "--root=world", "--segments=20", "--crop=40,64"]
    code, out, err = command(*words, weights, "--camera=all", "--pixel=60,80", "--point=5,0,-1")
    assert code == 0, err
    (folder,) = Path("output/show/synthetic").iterdir()
    assert len(list(folder.glob("camera_CAM_*.png"))) == len(list(folder.glob("similarity_CAM_*.png"))) == 6
    both = Image.open(folder / "similarity_CAM_FRONT.png").size
    code, out, err = command(*words, "--weights=lidar.pt", "--format=pdf", "--dpi=60")
    assert code == 0 and "Pixels have no features: the model has no image head" in out
    alone = Image.open(folder / "similarity_CAM_FRONT.png").size
    assert alone[0] / 60 < both[0] / 110 and alone[1] / 60 < both[1] / 110  # one half, one row
    assert (folder / "similarity_CAM_FRONT.pdf").read_bytes().startswith(b"%PDF")
    assert command(*words, weights, "--split=train", "--frame=1")[0] == 0
    assert len(list(Path("output/show/synthetic").iterdir())) == 2  # a folder a frame
    _, out, _ = command(*words, weights, "--teacher_weights=other.pt")
    assert "Pixels have no features: " in out and "other.pt" in out
    assert "`pixel` cannot be 900,0: CAM_FRONT has 90 rows" in command.refused(*words, weights, "--pixel=900,0")
    assert "there is no class `cat`" in command.refused(*words, weights, "--classes=cat")
    assert "needs a network; run" in command.refused(*words, "--classes=car")


def test_queries_are_the_points_asked_for(command):
    reader = open_reader("synthetic", Path("world"), "val")
    frame = reader.read(0, Needs(cameras="all", labels=True))
    seen = frame.pairs.select(frame.pairs.camera == 0)
    at, names = 7, reader.dataset.classes
    place = tuple(frame.points[seen.point[at], :3] + np.float32(0.001))
    pixel = int(seen.row[at]), int(seen.column[at])
    by_pixel, by_place, car = choose_queries(frame, 0, names, pixel, place, ("car",)).values()
    row = np.flatnonzero(seen.point == by_pixel)[0]
    assert (seen.row[row], seen.column[row]) == pixel and by_place == seen.point[at]
    assert names[frame.labels[car]] == "car" and car in seen.point
    frame.labels[:] = 0
    with pytest.raises(InputError, match="sees no labelled point of the class car"):
        choose_queries(frame, 0, names, None, None, ("car",))
