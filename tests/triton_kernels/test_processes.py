"""Batch norm over several processes gives what one process gives on all their rows, however they are shared out."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from triton_kernels import BatchNorm, SparseTensor, backend

ROWS, CHANNELS = 1023, 5
SHARES = (700, 1023, 0)  # rows of the first of two processes
CASES = [(torch.float32, "torch", 1e-6), (torch.float64, "torch", 1e-12), (torch.float32, "triton", 1e-6)]


def step(rows: slice, dtype: torch.dtype, synchronised: bool) -> list[torch.Tensor]:
    """Output, gradients of input, residual, weight and bias, and running statistics of one step on some rows."""
    generator = torch.Generator().manual_seed(0)
    x, residual, grad = torch.randn(3, ROWS, CHANNELS, generator=generator, dtype=torch.float64)
    x = x * 3 + 10
    norm = BatchNorm(CHANNELS, momentum=0.3).to(dtype)
    with torch.no_grad():
        norm.bn.weight.uniform_(generator=generator)
        norm.bn.bias.uniform_(generator=generator)
    if synchronised:
        norm = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    x, residual = (t[rows].to(dtype).requires_grad_() for t in (x, residual))
    given = SparseTensor(x, torch.arange(len(x))[:, None] * torch.tensor([0, 1, 1, 1]))
    out = norm(given, given.with_features(residual), relu=True).features
    gradients = torch.autograd.grad(out, (x, residual, norm.bn.weight, norm.bn.bias), grad[rows].to(dtype))
    return [out.detach(), *gradients, norm.bn.running_mean, norm.bn.running_var]


def one_of_two(rank: int, folder: str) -> None:
    """One process's results of every case, written to the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = []
    for dtype, name, _ in CASES:
        for share in SHARES:
            with backend.forced(name):
                results.append(step(slice(share, None) if rank else slice(share), dtype, synchronised=True))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[list]:
    """The results of both processes, case after case and share after share."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("dtype", "name", "tolerance"), CASES)
def test_batch_norm_over_processes(parts, dtype, name, tolerance, share):
    with backend.forced(name):
        expected = step(slice(None), dtype, synchronised=False)
    first, second = (part[CASES.index((dtype, name, tolerance)) * len(SHARES) + SHARES.index(share)] for part in parts)
    assert len(first[0]) == share and len(second[0]) == ROWS - share
    for i, (a, b, whole) in enumerate(zip(first, second, expected, strict=True)):
        if i < 3:  # rows
            a = torch.cat((a, b))
        elif i < 5:  # gradients of the parameters: of a process's own rows, as in nn.SyncBatchNorm
            a = a + b
        else:  # running statistics
            assert torch.equal(a, b)
        assert (a - whole).norm() <= tolerance * whole.norm(), i
