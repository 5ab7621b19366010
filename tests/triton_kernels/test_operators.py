"""The engine's torch operators: schemas, fakes, autocast, torch.compile; and that no layer waits for the device."""

import contextlib

import pytest
import torch
from torch import nn
from torch.library import opcheck

from benchmarks.launches import Operations, counted
from slidr.networks.minkunet import MinkUNet
from tests.triton_kernels.conftest import DEVICE
from tests.triton_kernels.test_reference import cloud
from triton_kernels import (
    BatchNorm,
    CartesianGrid,
    CylindricalGrid,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseTensor,
    backend,
    to_points,
    voxelize,
)
from triton_kernels.hash_table import HashTable, SortedKeys
from triton_kernels.kernel_map import build_pairs
from triton_kernels.kernels.kernel_map import build_tiles

OPS = torch.ops.triton_kernels
CHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize("n", [1, 60])
def test_schemas_and_fakes(device, n):
    coordinates = cloud(n, n).to(device)
    n = len(coordinates)
    x, grad = torch.randn(n, 5, device=device), torch.randn(n, 7, device=device)
    weight = torch.randn(27, 5, 7, device=device)
    where = (coordinates, coordinates, (3, 3, 3), (1, 1, 1))
    s = build_pairs(*where, SortedKeys.of(coordinates)).coarse
    arguments = (x, weight, s.read, s.order, s.starts, s.counts, True, False)
    opcheck(OPS.convolve_pairs.default, arguments, test_utils=CHECKS)
    for wanted in ((True, True), (False, True), (True, False)):
        arguments = (grad, x, weight, s.read, s.written, s.order, s.starts, s.counts, True, True, *wanted)
        opcheck(OPS.convolve_pairs_backward.default, arguments, test_utils=CHECKS)
    if backend.uses_triton(device):
        tiles = build_tiles(*where, HashTable.of(coordinates))
        p = tiles.coarse
        plan = (p.order, p.table, p.lists, p.counts, p.height)
        opcheck(OPS.convolve_tiles.default, (x, weight, *plan, False, False), test_utils=CHECKS)
        opcheck(OPS.convolve_tiles.default, (grad, weight, *plan, True, True), test_utils=CHECKS)
        found = (tiles.pairs_fine, tiles.pairs_coarse, tiles.start)
        opcheck(OPS.weight_gradient_tiles.default, (x, grad, *found), test_utils=CHECKS)
    scale, shift = torch.rand(5, device=device), torch.rand(5, device=device)
    running = torch.zeros(5, device=device), torch.ones(5, device=device), torch.tensor(0, device=device)
    for residual in (None, torch.randn(n, 5, device=device)):
        arguments = (x, scale, shift, residual, *running, 0.1, 1e-5, True)
        opcheck(OPS.normalize.default, arguments, test_utils=CHECKS)
        y, statistics = OPS.normalize(*arguments)
        saved = (x, statistics, None if residual is None else y)
        arguments = (torch.randn(n, 5, device=device), *saved, True, residual is not None)
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


class TorchsOwnWatch(contextlib.AbstractContextManager):
    """On a GPU torch itself can raise whenever the host waits."""

    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode("default")


class NoWaiting(Operations):
    """Fails at every operation whose result the host needs to continue: on a GPU it would wait."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def note(self, name, operator, arguments):
        boolean = name == "index" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        assert not boolean and not any(wait in name for wait in self.WAITS), f"{name} waits for the device"


@pytest.mark.parametrize("grid", [CylindricalGrid(), CartesianGrid(0.2), CartesianGrid((0.1, 0.2, 0.3))])
def test_voxelize_waits_once(triton_device, grid, monkeypatch):
    reads, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor) or tolist(tensor))
    points = torch.randn(60, 3, device=triton_device)
    with NoWaiting():
        voxelize(points, torch.arange(60, device=triton_device) % 2, grid, strides=(1, 2, 4))
    assert len(reads) == 1


def test_the_host_never_waits_between_the_size_read_and_the_loss(triton_device):
    network = nn.ModuleList(
        [SparseConv3d(1, 8, 3), BatchNorm(8), SparseConv3d(8, 8, 2, 2), BatchNorm(8), SparseConvTranspose3d(8, 4, 2, 2)]
    ).to(triton_device)
    points = torch.randn(120, 3, device=triton_device)
    batch = (torch.arange(120, device=triton_device) >= 60).int()

    def step(watch):
        v = voxelize(points, batch, CylindricalGrid(1.0, 30.0, 1.0), strides=(1, 2))
        with watch:
            x = SparseTensor(points[v.first][:, :1], v)
            for layer in network:
                x = layer(x, relu=True) if isinstance(layer, BatchNorm) else layer(x)
            out = to_points(x, v.inverse)
            out.square().mean().backward()
        return out

    step(contextlib.nullcontext())  # compiles kernels and fills the caches of the process
    assert step(NoWaiting()).isfinite().all()
    if triton_device.type == "cuda":
        assert step(TorchsOwnWatch()).isfinite().all()
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        int(points.sum())  # the watch itself works


@pytest.mark.skipif(DEVICE.type == "cuda", reason="Triton's launches are counted in its interpreter")
def test_a_layer_is_few_launches(triton_device):
    """With few scans a GPU waits for its host, which needs a few microseconds for each launch."""
    torch.manual_seed(0)
    coordinates = cloud(60, 60)
    x = SparseTensor(torch.randn(len(coordinates), 5, requires_grad=True), coordinates)
    layer, norm = SparseConv3d(5, 7, 3), BatchNorm(7)
    layer(x)  # makes the map
    with counted() as forward:
        y = layer(x)
        y = norm(y, residual=y, relu=True).features
    assert forward == dict.fromkeys(
        ("_convolve", "_statistics_kernel", "_finish_statistics_kernel", "_apply_kernel"), 1
    )
    with counted() as backward:
        torch.autograd.grad(y, (x.features, layer.weight, norm.bn.weight), torch.ones_like(y))
    ours = {"_sums_kernel": 1, "_finish_sums_kernel": 1, "_grad_kernel": 1, "_convolve": 1, "_weight_gradient": 1}
    assert backward == ours | {"add": 1, "ones_like": 1}  # the sum of y's two gradients, and this test's own
