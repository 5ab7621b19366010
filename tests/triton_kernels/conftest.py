"""Both backends for the engine's tests, and kernel maps as plain lists."""

import pytest
import torch

from benchmarks import peers
from triton_kernels import backend
from triton_kernels.kernel_map import Pairs, Tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # on a CPU Triton's kernels are interpreted


@pytest.fixture(params=["torch", "triton"])
def device(request):
    """The device to compute on, each backend in turn."""
    with backend.forced(request.param):
        yield DEVICE


@pytest.fixture
def triton_device():
    """The device to compute on, with Triton."""
    with backend.forced("triton"):
        yield DEVICE


def listed(kernel_map: Pairs | Tiles) -> list[tuple[int, int, int]]:
    """All (k, fine row, coarse row) of a map, in its order."""
    m = kernel_map
    if isinstance(m, Pairs):
        return list(map(tuple, peers.listed(m).tolist()))
    ends = m.start.tolist()
    ks = [k for k, (a, b) in enumerate(zip(ends, ends[1:], strict=False)) for _ in range(b - a)]
    return list(zip(ks, m.pairs_fine.tolist(), m.pairs_coarse.tolist(), strict=False))
