"""Fixtures shared by all tests."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

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
