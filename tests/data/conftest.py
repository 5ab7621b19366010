"""A small world in both layouts, to be broken."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.datasets.nuscenes import index
from data.datasets.synthetic import SyntheticWorld, write_kitti, write_nuscenes

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


@pytest.fixture
def builds(monkeypatch):
    """The folders of nuScenes tables that have been parsed, one entry each time."""
    calls, build = [], index._build_index
    monkeypatch.setattr(index, "_build_index", lambda folder: calls.append(folder) or build(folder))
    return calls


_OPENED: list[set[Path]] = []  # one set while a test looks; an audit hook cannot be taken away again


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], (str, Path)):
        for files in _OPENED:
            files.add(Path(arguments[0]))


sys.addaudithook(_note)


@pytest.fixture
def opened(tmp_path) -> Iterator[set[Path]]:
    """The files that have been opened, by whatever means, since the test began."""
    _OPENED.append(set())
    yield _OPENED[0]
    _OPENED.clear()
