"""Pretraining from scans alone, as a user runs it: what it takes, and what it says where there is too little."""

import shutil
from pathlib import Path

import pytest

from data.datasets.synthetic import SyntheticWorld, write_kitti
from tests.stages.conftest import Command

WORLD = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=3, image_scale=0.02, azimuths=64)
SMALL = ["--architecture=res16unet14c", "--width=0.25", "--voxel_size=0.4,2,0.4", "--epochs=1", "--workers=0"]
METHODS = {
    "depthcontrast": ["--points=64", "--queue=8", "--batch=2"],
    "pointcontrast": [
        "--min_distance=2",
        "--max_distance=none",
        "--match_distance=0.5",
        "--min_matches=5",
        "--batch=2",
    ],
}
SEQUENCES = Path("kitti/dataset/sequences")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """SemanticKITTI's layout without images, labels and times."""
    root = tmp_path_factory.mktemp("lidar")
    write_kitti(root, WORLD)
    for sequence in (root / "dataset/sequences").iterdir():
        for path in sequence.iterdir():
            if path.is_dir() and path.name != "velodyne":
                shutil.rmtree(path)
            elif path.name not in ("velodyne", "calib.txt", "poses.txt"):
                path.unlink()
    return root


@pytest.fixture
def alone(scans, tmp_path, monkeypatch, capsys) -> Command:
    """A command line beside a copy of those scans."""
    shutil.copytree(scans, tmp_path / "kitti")
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, capsys)


def words(method: str, *more: str) -> list[str]:
    return ["pretrain", f"--method={method}", "--dataset=kitti", "--root=kitti", *SMALL, *METHODS[method], *more]


def leave_scans_only() -> None:
    for file in SEQUENCES.rglob("*.txt"):
        file.unlink()


def test_depthcontrast_takes_scans_and_nothing_else(alone):
    leave_scans_only()
    assert {path.suffix for path in Path("kitti").rglob("*") if path.is_file()} <= {".bin", ".json"}
    code, _, err = alone(*words("depthcontrast", "--name=run"))
    assert code == 0, err
    assert Path("output/pretrain/run/model.pt").exists() and Path("output/pretrain/run/views.png").exists()


def test_pointcontrast_takes_scans_calibration_and_poses(alone):
    files = {path.name for path in SEQUENCES.rglob("*") if path.is_file() and path.suffix != ".bin"}
    assert files == {"calib.txt", "poses.txt"}
    code, _, err = alone(*words("pointcontrast", "--name=run"))
    assert code == 0, err
    assert Path("output/pretrain/run/model.pt").exists() and Path("output/pretrain/run/matches.png").exists()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 8])
def test_batches_of_one_scan_and_batches_larger_than_the_split(alone, method, batch):
    code, _, err = alone(*words(method, "--name=run"), f"--batch={batch}")
    assert code == 0, err
    assert Path("output/pretrain/run/report.md").exists()


def test_what_pointcontrast_lacks_is_one_sentence(alone):
    sentence = alone.refused(*words("pointcontrast", "--min_matches=100000"))
    assert "none has 100,000 points within 0.5 m of each other" in sentence and "lower --min_distance" in sentence
    for file in sorted(SEQUENCES.rglob("velodyne/*.bin"))[1:]:
        if file.parents[1].name == "00" and file.stem != "000000":
            file.unlink()
    assert "has one keyframe only" in alone.refused(*words("pointcontrast"))
    leave_scans_only()
    assert "poses.txt: it is not there, and poses are needed" in alone.refused(*words("pointcontrast"))
    assert not list(Path("output").rglob("model.pt"))
