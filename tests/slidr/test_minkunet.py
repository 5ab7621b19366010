"""The student's shape, names, checkpoints and behaviour at the edges (numbers: tests/triton_kernels/test_golden.py)."""

import numpy as np
import pytest
import torch
from torch import nn

from data.files import InputError
from slidr.networks.minkunet import BLOCKS, PLANES, UNREAD, MinkUNet, ResidualBlock, from_minkowski, to_minkowski
from triton_kernels import BatchNorm, SparseTensor


def scan(voxels: int, seed: int = 0, channels: int = 1) -> SparseTensor:
    """`[<= voxels]` voxels in the batch items 0 and 2; item 1 is empty."""
    rng = np.random.default_rng(seed)
    c = np.column_stack((rng.choice((0, 2), voxels), rng.integers(-12, 12, (voxels, 3))))
    coordinates = torch.from_numpy(np.unique(c, axis=0).astype(np.int32).reshape(-1, 4))
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(torch.randn(len(coordinates), channels, generator=generator), coordinates)


def narrow(**options) -> MinkUNet:
    torch.manual_seed(0)
    return MinkUNet(6, "res16unet14c", width=0.25, **options)


def test_the_paper_s_network_has_its_parameters():
    assert sum(p.numel() for p in MinkUNet(64).parameters()) == 37_849_184


@pytest.mark.parametrize("architecture", BLOCKS)
@pytest.mark.parametrize(("width", "widths"), [(0.25, (8, 16, 32, 64, 64, 32, 24, 24)), (1.0, PLANES)])
def test_variants(architecture, width, widths):
    with torch.device("meta"):
        net = MinkUNet(3, architecture, width=width)
    for level, (blocks, channels) in enumerate(zip(BLOCKS[architecture], widths, strict=True)):
        stack = net.get_submodule(f"block{level + 1}")
        assert len(stack) == blocks
        assert {block.conv2.weight.shape[2] for block in stack} == {channels}
    assert net.final.weight.shape == (1, widths[-1], 3)


def test_an_unknown_architecture_is_named():
    with pytest.raises(InputError, match="no architecture `res50`; choose one of res16unet14c"):
        MinkUNet(3, "res50")


def test_momentum_reaches_all_norms_but_those_inside_blocks():
    net = narrow(bn_momentum=0.02, bn_momentum_blocks=0.3)
    inside = {id(m) for block in net.modules() if isinstance(block, ResidualBlock) for m in (block.norm1, block.norm2)}
    norms = [m for m in net.modules() if isinstance(m, BatchNorm)]
    assert len(inside) == 16 and len(norms) > 24
    assert {m.bn.momentum for m in norms if id(m) in inside} == {0.3}
    assert {m.bn.momentum for m in norms if id(m) not in inside} == {0.02}


def test_output_is_on_the_input_s_voxels_and_the_head_is_last():
    x = scan(600, channels=3)
    net = narrow(in_channels=3, normalize=True).eval()
    y, features = net(x), net.backbone(x)
    assert y.coordinates is x.coordinates and y.stride == (1, 1, 1)
    assert features.features.shape == (len(x.features), 24)
    head = features.features @ net.final.weight[0] + net.final.bias
    assert torch.allclose(y.features, head / head.norm(dim=1, keepdim=True), atol=1e-6)


def test_batch_items_do_not_see_each_other():
    """In eval mode each item of a batch is what it is alone."""
    x = scan(600)
    net = narrow().eval()
    together = net(x).features
    for item in (0, 2):
        mine = x.coordinates[:, 0] == item
        alone = net(SparseTensor(x.features[mine], x.coordinates[mine])).features
        assert torch.allclose(together[mine], alone, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("voxels", [0, 1, 2])
def test_hardly_any_voxels(voxels, training):
    x = scan(voxels)
    net = narrow(normalize=True).train(training)
    out = net(x).features
    out.sum().backward()
    assert out.shape == (len(x.features), 6)
    assert torch.allclose(out.norm(dim=1), torch.ones(len(out)))
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert all(torch.isfinite(b).all() for b in net.buffers())


@pytest.mark.parametrize(("training", "cosine"), [(False, 0.99), (True, 0.9)])
def test_bfloat16_follows_float32(training, cosine):
    """Autocast trains: outputs agree to bfloat16's digits, and the gradient of all weights points the same way.

    With the batch's own statistics, float32 with nothing but its convolutions' inputs rounded loses as much.
    """
    results = []
    for enabled in (False, True):
        net = narrow().train(training)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = net(scan(600)).features
        (out.float() * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).mean().backward()
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        assert all(p.grad.dtype == torch.float32 for p in net.parameters())
        results.append((out.float().detach(), torch.cat([p.grad.flatten() for p in net.parameters()])))
    (exact, exact_grad), (half, half_grad) = results
    assert (half - exact).norm() < 0.03 * exact.norm()
    assert nn.functional.cosine_similarity(exact_grad, half_grad, dim=0) > cosine


def test_a_small_network_learns():
    """Twenty steps tell which side of a plane a voxel lies on: gradients point downhill through all levels."""
    x = scan(600)
    target = (x.coordinates[:, 1] > 0).long()
    net = narrow().train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        x = SparseTensor(x.coordinates[:, 1:2].float() / 12, x.coordinates)
        loss = nn.functional.cross_entropy(net(x).features, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("prefix", ["", "model.", "model_points.", "module.model_points.", "encoder.", "trunk.2."])
def test_checkpoints_there_and_back(prefix):
    state = narrow().state_dict()
    theirs = to_minkowski(state)
    assert theirs["conv0p1s1.kernel"].shape == (27, 1, 8)
    assert theirs["block2.0.downsample.0.kernel"].ndim == theirs["final.kernel"].ndim == 2
    assert theirs["final.bias"].shape == (1, 6)
    ours = from_minkowski({prefix + key: value for key, value in theirs.items()})
    assert list(ours) == [key for key in state if not key.endswith(UNREAD)]
    assert all(torch.equal(value, state[key]) for key, value in ours.items())


@pytest.mark.parametrize("key", ["encoder.layer1.0.conv1.weight", "decoder.0.weight", "optimizer"])
def test_a_foreign_key_is_named(key):
    with pytest.raises(InputError, match=f"`{key}` is no layer"):
        from_minkowski({key: torch.zeros(1)})
    with pytest.raises(InputError, match="`conv0p1s1.kernel` is no layer"):
        from_minkowski({"conv0p1s1.kernel": "text"})


def test_synchronised_batch_norm_takes_its_place():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(narrow(bn_momentum=0.02)).eval()
    assert isinstance(net.bn0.bn, nn.SyncBatchNorm) and net.bn0.bn.momentum == 0.02
    x = scan(300)
    assert torch.equal(net(x).features, narrow(bn_momentum=0.02).eval()(x).features)
