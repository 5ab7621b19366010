"""A tiny built-in world and a way to run commands as a user does."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import run
from data.datasets.synthetic import SyntheticWorld, write_kitti, write_nuscenes

TINY = SyntheticWorld(train_scenes=2, val_scenes=1, frames_per_scene=1, image_scale=0.1, azimuths=96)
SMALL = ["--width=0.25", "--crop=[40, 64]", "--segments=20", "--min_pairs=10", "--batch=2", "--epochs=1", "--workers=0"]


@dataclass
class Command:
    """Runs `python run.py ...` in an empty working folder with a tiny world at its default place."""

    folder: Path
    capsys: pytest.CaptureFixture

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        self.capsys.readouterr()
        code = run.main([str(word) for word in words])
        return code, *self.capsys.readouterr()

    def refused(self, *words: object) -> str:
        """The one sentence of a command that must exit with 2."""
        code, _, err = self(*words)
        assert code == 2, err
        sentence = err.strip().splitlines()[-1]
        assert sentence.startswith("run.py ") and "Traceback" not in err
        return sentence


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """datasets/synthetic with both layouts."""
    root = tmp_path_factory.mktemp("world")
    write_nuscenes(root / "nuscenes", TINY)
    write_kitti(root / "kitti", TINY)
    return root


@pytest.fixture
def command(tmp_path, tiny_world, monkeypatch, capsys) -> Command:
    """A command line in a folder of its own, with the tiny world in place of the default one."""
    shutil.copytree(tiny_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, capsys)
