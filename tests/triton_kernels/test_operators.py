"""The engine's operators as torch sees them: schemas, fakes, autocast, torch.compile; and that nothing waits."""

import pytest
import torch
from torch.library import opcheck

from slidr.minkunet import MinkUNet
from tests.triton_kernels.test_reference import cloud
from triton_kernels import SparseTensor, kernel_map
from triton_kernels.coordinates import pack
from triton_kernels.hash_table import HashTable

OPS = torch.ops.triton_kernels
CHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize("n", [1, 60])
def test_schemas_and_fakes(device, n):
    coordinates = cloud(n, n).to(device)
    n = len(coordinates)
    x, grad = torch.randn(n, 5, device=device), torch.randn(n, 7, device=device)
    weight = torch.randn(27, 5, 7, device=device)
    where = (coordinates, coordinates, (3, 3, 3), (1, 1, 1), HashTable(pack(coordinates)))
    pairs = kernel_map.build_pairs(*where)
    rows = (pairs.fine, pairs.coarse, pairs.counts, pairs.centre)
    opcheck(OPS.convolve_pairs.default, (x, weight, *rows, n), test_utils=CHECKS)
    for wanted in ((True, True), (False, True), (True, False)):
        opcheck(OPS.convolve_pairs_backward.default, (grad, x, weight, *rows, *wanted), test_utils=CHECKS)
    if hasattr(where[-1], "capacity"):
        tiles = kernel_map.build_tiles(*where)
        p = tiles.coarse
        plan = (p.order, p.table, p.lists, p.counts, p.height)
        opcheck(OPS.convolve_tiles.default, (x, weight, *plan, False, False), test_utils=CHECKS)
        opcheck(OPS.convolve_tiles.default, (grad, weight, *plan, True, True), test_utils=CHECKS)
        found = (tiles.pairs_fine, tiles.pairs_coarse, tiles.start)
        opcheck(OPS.weight_gradient_tiles.default, (x, grad, *found), test_utils=CHECKS)
    scale, shift = torch.rand(5, device=device), torch.rand(5, device=device)
    for residual in (None, torch.randn(n, 5, device=device)):
        opcheck(OPS.normalize.default, (x, scale, shift, residual, 1e-5, True), test_utils=CHECKS)
        y, mean, variance = OPS.normalize(x, scale, shift, residual, 1e-5, True)
        saved = (x, mean, variance, scale, shift, None if residual is None else y)
        arguments = (torch.randn(n, 5, device=device), *saved, 1e-5, True, residual is not None)
        opcheck(OPS.normalize_backward.default, arguments, test_utils=CHECKS)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MinkUNet(5, "res16unet14c", width=0.25)


def outputs(network, precision=None, function=None):
    """(output, gradients) of one training step on a small cloud."""
    coordinates = cloud(300, 7, spread=9)
    features = torch.randn(len(coordinates), 1, generator=torch.Generator().manual_seed(3))
    network.zero_grad()
    network.train()
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        out = (network if function is None else function)(SparseTensor(features, coordinates)).features
    out.float().square().sum().backward()
    return out.detach(), [p.grad.clone() for p in network.parameters()]


@pytest.mark.slow  # half a minute of compiling
def test_a_compiled_network_gives_the_same(network):
    state = {k: v.clone() for k, v in network.state_dict().items()}
    expected, gradients = outputs(network)
    network.load_state_dict(state)
    out, grads = outputs(network, function=torch.compile(network, backend="aot_eager"))
    assert torch.allclose(out, expected, atol=1e-5)
    for a, b in zip(grads, gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1))


def test_autocast(network):
    expected, gradients = outputs(network)
    out, grads = outputs(network, precision=torch.bfloat16)
    assert out.dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in grads)
    assert (out - expected).norm() / expected.norm() < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_the_host_never_waits_between_the_size_read_and_the_loss():
    from triton_kernels import CylindricalGrid, voxelize

    network = MinkUNet(5, "res16unet14c", width=0.25).cuda()
    points = torch.randn(5000, 3, device="cuda") * 10
    batch = (torch.arange(5000, device="cuda") >= 2500).int()

    def step():
        v = voxelize(points, batch, CylindricalGrid(), strides=(1, 2, 4, 8, 16))
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = network(SparseTensor(points[v.first][:, :1], v)).features
            out.square().mean().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return out

    step()  # compiles, and makes what is made once a process
    assert step().isfinite().all()
