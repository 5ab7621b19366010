"""Fixtures shared by all tests."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets.nuscenes import NuScenes
from data.frame import Frame, Needs

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SLIDR_SHARED", ROOT.parent / "shared"))

if not torch.cuda.is_available():  # Triton reads it when a kernel is defined: kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile("slidr", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("slidr")
torch.set_num_threads(1)  # two OpenMP threads beside another busy process collapse


@pytest.fixture(scope="session")
def shared():
    """`shared("golden", "quantize.npz")` -> path of licensed test data; skips without it, fails under CI=true."""

    def find(*parts: str) -> Path:
        path = SHARED.joinpath(*parts)
        if not path.exists():
            missing = f"{path} is not there (set SLIDR_SHARED)"
            if os.environ.get("CI") == "true":
                pytest.fail(missing)
            pytest.skip(missing)
        return path

    return find


@pytest.fixture(scope="session")
def nuscenes_frames(shared, tmp_path_factory) -> list[Frame]:
    """Both real nuScenes frames with the superpixel maps of the pinned environment (JPEG decoders differ: so would
    new maps). Tests must not change them."""
    root, maps = shared("realdata", "nuscenes2"), shared("golden", "step", "superpixels_skimage0.18.2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))  # the reader keeps its index in the working folder
        reader = NuScenes(root, "all")
        frames = [reader.read(i, Needs(cameras="all", pose=True)) for i in range(2)]
    for i, frame in enumerate(frames):
        for view in frame.cameras:
            view.superpixels = np.asarray(Image.open(maps / f"{i}_{view.name}.png")).astype(np.int32)
    return frames
