"""Weights of other engines: the offset that each number belongs to, and there and back."""

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from triton_kernels import SparseConv3d, SparseConvTranspose3d, SparseTensor, layouts
from triton_kernels.kernel_map import kernel_offsets

KERNELS = [(3, 3, 3), (2, 2, 2), (5, 3, 2), (1, 1, 1), (3, 1, 1)]


def named(kernel: tuple) -> torch.Tensor:
    """Our weight `[K, 1, 1]` in which each number spells its own index per axis: 100 i0 + 10 i1 + i2."""
    centre = [k // 2 if k % 2 else 0 for k in kernel]
    return torch.tensor(
        [
            [[sum((o + c) * 10**p for o, c, p in zip(offset, centre, (2, 1, 0), strict=True))]]
            for offset in kernel_offsets(kernel)
        ]
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_spconv_numbers_its_offsets_by_axis(kernel):
    theirs = layouts.to_spconv(named(kernel), kernel)
    assert theirs.shape == (1, *kernel, 1)
    for index in np.ndindex(*kernel):
        assert int(theirs[0][index][0]) == int("".join(map(str, index)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_torchsparse_runs_along_its_last_axis_if_the_kernel_is_even(kernel):
    theirs = layouts.to_torchsparse(named(kernel), kernel)
    spelled = [int("".join(map(str, index))) for index in np.ndindex(*kernel)]  # the last axis fastest
    if len(spelled) % 2:
        spelled = named(kernel).flatten().tolist()
    assert theirs.flatten().tolist() == spelled


@pytest.mark.parametrize("kernel", KERNELS)
def test_there_and_back(kernel):
    weight = torch.randn(int(np.prod(kernel)), 4, 6)
    assert torch.equal(layouts.from_minkowski(layouts.to_minkowski(weight)), weight)
    assert torch.equal(layouts.from_spconv(layouts.to_spconv(weight, kernel)), weight)
    assert torch.equal(layouts.from_torchsparse(layouts.to_torchsparse(weight, kernel), kernel), weight)


def test_a_golden_layer_survives_the_way_through_every_layout(shared):
    """The original's 3x3x3 weight, sent through each layout, still gives the original's output."""
    z = np.load(shared("golden", "layers", "cyl_k3s1_ts1.npz"))
    weight = torch.from_numpy(z["kernel"])
    x = SparseTensor(torch.from_numpy(z["in_feats"]), torch.from_numpy(z["in_coords"]))
    row = {tuple(c): i for i, c in enumerate(z["in_coords"].tolist())}
    order = [row[tuple(c)] for c in z["out_coords"].tolist()]
    for way in (
        layouts.from_minkowski(layouts.to_minkowski(weight)),
        layouts.from_spconv(layouts.to_spconv(weight, 3)),
        layouts.from_torchsparse(layouts.to_torchsparse(weight, 3), 3),
    ):
        layer = SparseConv3d(*weight.shape[1:], 3)
        layer.weight.data.copy_(way)
        assert torch.allclose(layer(x).features[order], torch.from_numpy(z["out_feats"]), atol=1e-5)


def test_the_page_for_porters_runs():
    page = (ROOT / "triton_kernels" / "README.md").read_text()
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["out"].features.shape == (1000, 16)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\[Cout, k0, k1, k2, Cin\]; this one is \[27, 4, 6\]"):
        layouts.from_spconv(torch.zeros(27, 4, 6))
    with pytest.raises(ValueError, match=r"a kernel of \(2, 2, 2\) has a weight \[8, Cin, Cout\]"):
        layouts.to_spconv(torch.zeros(27, 4, 6), 2)


def test_a_network_ported_from_spconv_gives_the_same():
    """Only where spconv is installed: submanifold, strided and inverse layers on the CPU."""
    spconv = pytest.importorskip("spconv.pytorch")
    torch.manual_seed(0)
    coordinates = torch.unique(torch.randint(0, 8, (100, 3), dtype=torch.int32), dim=0)
    coordinates = torch.cat((torch.zeros(len(coordinates), 1, dtype=torch.int32), coordinates), 1)
    features = torch.randn(len(coordinates), 5)
    theirs = (
        spconv.SubMConv3d(5, 7, 3, bias=False),
        spconv.SparseConv3d(7, 6, 2, 2, bias=False, indice_key="down"),
        spconv.SparseInverseConv3d(6, 9, 2, bias=False, indice_key="down"),
    )
    ours = (SparseConv3d(5, 7, 3), SparseConv3d(7, 6, 2, 2), SparseConvTranspose3d(6, 9, 2, 2))
    x, y = SparseTensor(features, coordinates), spconv.SparseConvTensor(features, coordinates, [8, 8, 8], 1)
    for a, b in zip(ours, theirs, strict=True):
        a.weight.data.copy_(layouts.from_spconv(b.weight.data))
        x, y = a(x), b(y)
    assert torch.allclose(x.features, y.features, atol=1e-6)
