"""A small world in both layouts, to be broken."""

import shutil
from pathlib import Path

import pytest

from data.synthetic import SyntheticWorld, write_kitti, write_nuscenes

WORLD = SyntheticWorld(train_scenes=1, val_scenes=1, frames_per_scene=1, image_scale=0.05, azimuths=32)


@pytest.fixture(scope="session")
def _world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_nuscenes(root / "nuscenes", WORLD)
    write_kitti(root / "kitti", WORLD)
    return root


@pytest.fixture
def small_world(_world, tmp_path, monkeypatch) -> Path:
    """A folder with nuscenes/ and kitti/ of two frames each; the index of the first goes elsewhere."""
    shutil.copytree(_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "world"
