"""Every operation against its naive definition: odd sizes, odd kernels, negative coordinates, outputs and gradients."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.triton_kernels.conftest import listed
from triton_kernels import (
    BatchNorm,
    CartesianGrid,
    CylindricalGrid,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseTensor,
    cat,
    convolution,
    kernel_map,
    reference,
    to_points,
    voxelize,
)
from triton_kernels.coordinates import HIGHEST, LOWEST, pack
from triton_kernels.kernel_map import kernel_offsets


def cloud(n: int, seed: int, spread: int = 6, batches=(0, 2)) -> torch.Tensor:
    """`[<= n, 4]` distinct coordinates around the origin in shuffled order; batch item 1 is empty."""
    rng = np.random.default_rng(seed)
    c = np.column_stack((rng.choice(batches, n), rng.integers(-spread, spread, (n, 3))))
    return torch.from_numpy(rng.permutation(np.unique(c, axis=0) if n else c).astype(np.int32))


def tuples(coordinates: torch.Tensor) -> list[tuple]:
    return [tuple(c) for c in coordinates.tolist()]


def both(layer, x: SparseTensor, transposed: bool):
    """(our output features, the reference's) of a layer, in the order of our output coordinates."""
    y = layer(x)
    fine, coarse = (y, x) if transposed else (x, y)
    step = [d * s for d, s in zip(layer.dilation, fine.stride, strict=True)]
    found = reference.pairs(tuples(fine.coordinates), tuples(coarse.coordinates), layer.kernel_size, step)
    expected = reference.convolve(x.features, layer.weight, found, len(y.features), transposed)
    return y, expected if layer.bias is None else expected + layer.bias


CASES = [
    (0, 1, 7, 3, 1),
    (1, 5, 7, 3, 1),
    (40, 17, 40, 3, 1),
    (40, 1, 7, (5, 3, 2), 1),
    (60, 5, 7, 2, 2),
    (60, 5, 7, 3, 2),
    (60, 5, 96, 1, 1),
    (60, 5, 7, 1, 2),
    (60, 5, 7, 5, 1),
    (60, 5, 7, 3, (1, 2, 1)),
    (1023, 5, 7, 3, 1),
]


@pytest.mark.parametrize(("n", "cin", "cout", "kernel", "stride"), CASES)
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolution_and_its_gradients(n, cin, cout, kernel, stride, dilation):
    torch.manual_seed(n)
    coordinates = cloud(n, n, spread=9 if n > 100 else 4)
    layer = SparseConv3d(cin, cout, kernel, stride, dilation, bias=True).double()
    features = torch.randn(len(coordinates), cin, dtype=torch.float64, requires_grad=True)
    y, expected = both(layer, SparseTensor(features, coordinates), transposed=False)
    if stride != 1:
        assert tuples(y.coordinates) == reference.downsample(tuples(coordinates), y.stride)
    assert torch.allclose(y.features, expected, atol=1e-12)
    weights = torch.randn_like(expected)
    inputs = (features, layer.weight, layer.bias)
    ours = torch.autograd.grad((y.features * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 1), (2, 2), (3, 2)])
def test_blocks_change_nothing(monkeypatch, dtype, kernel, stride):
    """Rows in blocks of 16 instead of all at once: outputs and gradients of a strided and a transposed layer."""
    torch.manual_seed(0)
    coordinates = cloud(300, 6, spread=4)
    features = torch.randn(len(coordinates), 5, requires_grad=True)
    down, up = SparseConv3d(5, 7, kernel, stride), SparseConvTranspose3d(7, 5, kernel, stride)

    def step(dtype):
        y = up(down(SparseTensor(features.to(dtype), coordinates)))
        parameters = (features, down.weight, up.weight)
        return y.features, *torch.autograd.grad(y.features.double().square().sum(), parameters)

    whole = step(torch.float64)
    for module in (kernel_map, convolution):
        monkeypatch.setattr(module, "BLOCK", 16)
    for a, b in zip(step(dtype), whole, strict=True):
        assert (a.double() - b).norm() < (1e-6 if dtype == torch.float64 else 2e-2) * b.norm()


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("n", [0, 1, 60])
def test_transposed_convolution_returns_to_the_cached_level(n, kernel):
    coordinates = cloud(n, 3)
    down, up = SparseConv3d(5, 5, 2, 2).double(), SparseConvTranspose3d(5, 7, kernel, 2, bias=True).double()
    x = SparseTensor(torch.randn(len(coordinates), 5, dtype=torch.float64), coordinates)
    z, expected = both(up, down(x), transposed=True)
    assert z.coordinates is x.coordinates and z.stride == x.stride
    assert torch.allclose(z.features, expected, atol=1e-12)


def test_gradcheck():
    coordinates = cloud(12, 5, spread=2)
    layer = SparseConv3d(2, 3, 3, 2).double()

    def f(features, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (SparseTensor(features, coordinates),)).features

    features = torch.randn(len(coordinates), 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(27, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (features, weight))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 60), kernel=st.tuples(*[st.integers(1, 4)] * 3))
def test_kernel_maps_by_definition(seed, n, kernel):
    coordinates = cloud(n, seed, spread=3)
    x = SparseTensor(torch.zeros(len(coordinates), 1), coordinates)
    found = x.cache.kernel_map(x.stride, x.stride, kernel, (1, 1, 1), torch.float32)
    assert sorted(listed(found)) == sorted(reference.pairs(tuples(coordinates), tuples(coordinates), kernel, (1, 1, 1)))
    assert kernel_offsets(kernel) == reference.kernel_offsets(kernel)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([0, 1, 7, 300]))
def test_voxelize_by_definition(seed, n):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.normal(0, 0.4, (n, 3)).astype(np.float32))
    batch = torch.from_numpy(rng.integers(0, 3, n))
    for grid in (CylindricalGrid(), CartesianGrid(0.2), CartesianGrid((0.1, 0.3, 0.2))):
        v = voxelize(points, batch, grid)
        coordinates, first, inverse = reference.voxelize(grid.bins(points), batch)
        assert tuples(v.coordinates) == coordinates
        assert v.first.tolist() == first and v.inverse.tolist() == inverse


def test_the_order_of_the_input_does_not_matter():
    coordinates = cloud(300, 1, spread=5)
    features = torch.randn(len(coordinates), 5)
    order = torch.randperm(len(coordinates))
    layer = SparseConv3d(5, 7, 3)
    a = layer(SparseTensor(features, coordinates)).features
    b = layer(SparseTensor(features[order], coordinates[order])).features
    assert torch.allclose(a[order], b, atol=1e-5)
    assert torch.equal(a, layer(SparseTensor(features, coordinates)).features)  # bit for bit from run to run


def test_the_edge_of_the_range_is_no_seam():
    """Adjacent keys of distant voxels: the last z of one column and the first of the next are not neighbours."""
    coordinates = torch.tensor(
        [[0, 0, 0, HIGHEST[3]], [0, 0, 1, LOWEST[3]], [1, LOWEST[1], 0, 0], [0, HIGHEST[1], 0, 0]]
    )
    x = SparseTensor(torch.ones(4, 1), coordinates)
    found = x.cache.kernel_map(x.stride, x.stride, (3, 3, 3), (1, 1, 1), torch.float32)
    assert sorted(listed(found)) == [(13, i, i) for i in range(4)]
    assert len(torch.unique(pack(coordinates))) == 4


def test_half_precision_sums_in_float32():
    coordinates = cloud(500, 2, spread=4)
    layer = SparseConv3d(16, 8, 3)
    x = SparseTensor(torch.randn(len(coordinates), 16), coordinates)
    exact = layer(x).features
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x).features
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize("n", [2, 3, 1023])
def test_batch_norm_is_that_of_all_voxels(n):
    """Outputs, running statistics and gradients of nn.BatchNorm1d in float64; then evaluation."""
    torch.manual_seed(n)
    norm, expected = BatchNorm(5, momentum=0.3).double(), torch.nn.BatchNorm1d(5, momentum=0.3).double()
    for module in (norm.bn, expected):
        torch.nn.init.uniform_(module.weight, generator=torch.Generator().manual_seed(1))
        torch.nn.init.uniform_(module.bias, generator=torch.Generator().manual_seed(2))
    coordinates = torch.arange(n)[:, None] * torch.tensor([0, 1, 1, 1])
    features = (torch.randn(n, 5, dtype=torch.float64) * 3 + 100).requires_grad_()
    grad = torch.randn(n, 5, dtype=torch.float64)
    ours, theirs = norm(SparseTensor(features, coordinates)).features, expected(features)
    assert torch.allclose(ours, theirs, atol=1e-10)
    assert norm.bn.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.allclose(norm.bn.state_dict()[key], value), key
    inputs = torch.autograd.grad(ours, (features, norm.bn.weight, norm.bn.bias), grad)
    for a, b in zip(inputs, torch.autograd.grad(theirs, (features, *expected.parameters()), grad), strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    norm.eval(), expected.eval()
    assert torch.allclose(norm(SparseTensor(features, coordinates)).features, expected(features), atol=1e-10)


def test_batch_norm_keeps_its_digits_far_from_zero():
    features = torch.randn(20_000, 4) + 30
    x = SparseTensor(features, torch.arange(20_000)[:, None] * torch.tensor([0, 1, 1, 1]))
    exact = torch.nn.BatchNorm1d(4).double()(features.double())
    assert (BatchNorm(4)(x).features - exact).abs().max() < 2e-5  # one float32 step of 30 is 2e-6


@pytest.mark.parametrize("n", [0, 1])
def test_batch_norm_of_too_few_voxels_takes_the_running_statistics(n):
    norm = BatchNorm(5)
    torch.nn.init.uniform_(norm.bn.running_mean)
    x = SparseTensor(torch.randn(n, 5), cloud(100, 4)[:n])
    trained = norm(x).features
    assert torch.equal(trained, norm.eval()(x).features) and trained.shape == (n, 5)
    assert norm.bn.num_batches_tracked == 0


def test_cat_and_to_points():
    coordinates = cloud(20, 4)
    x = SparseTensor(torch.randn(len(coordinates), 2), coordinates)
    y = x.with_features(torch.randn(len(coordinates), 3))
    assert torch.equal(cat(x, y).features, torch.cat((x.features, y.features), 1))
    assert torch.equal(to_points(x, torch.tensor([1, 1, 0])), x.features[[1, 1, 0]])
    with pytest.raises(ValueError, match="same coordinates"):
        cat(x, SparseTensor(x.features, coordinates))
    assert "3 batch items" in repr(x) and "2 channels" in repr(x)
    item, mine = x[2], coordinates[:, 0] == 2
    assert torch.equal(item.coordinates, coordinates[mine]) and torch.equal(item.features, x.features[mine])
    assert len(x[1].features) == 0  # an empty batch item
    moved = x.to("cpu")
    assert torch.equal(moved.features, x.features) and moved.cache is not x.cache


CORNER = torch.tensor([[0, LOWEST[1], 0, 0]])  # not a multiple of 3: rounding down leaves the range
GOOD = torch.zeros(2, 4, dtype=torch.int32) + torch.arange(2)[:, None]


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: SparseTensor(torch.zeros(2, 1), GOOD.float()), TypeError, "must be integers"),
        (lambda: SparseTensor(torch.zeros(2, 1), GOOD[:, :3]), ValueError, r"must be \[V, 4\]"),
        (lambda: SparseTensor(torch.zeros(3, 1), GOOD), ValueError, "one row a coordinate"),
        (lambda: SparseTensor(torch.zeros(2, 1), GOOD, stride=2), ValueError, "multiples of the stride"),
        (lambda: SparseTensor(torch.zeros(2, 1), GOOD * (1 << 20)), ValueError, "coordinate b spans"),
        (lambda: SparseConv3d(3, 4)(SparseTensor(torch.zeros(2, 1), GOOD)), ValueError, "takes 3 channels"),
        (lambda: SparseConv3d(1, 4)(SparseTensor(torch.zeros(2, 1), GOOD * 0)), ValueError, "occurs twice"),
        (lambda: SparseConv3d(1, 4, 0), ValueError, "kernel_size must be"),
        (lambda: SparseConvTranspose3d(1, 4)(SparseTensor(torch.zeros(2, 1), GOOD)), ValueError, "cannot be upsampled"),
        (
            lambda: voxelize(torch.tensor([[0.0, float("nan"), 0]]), torch.zeros(1), CartesianGrid()),
            ValueError,
            "1 of 1 points are not finite",
        ),
        (lambda: voxelize(torch.zeros(2, 3), torch.zeros(3), CartesianGrid()), ValueError, r"\[2, 3\] and \[3\]"),
        (lambda: CartesianGrid(0.0), ValueError, "edges must be one number or three, all above 0"),
        (lambda: CylindricalGrid(z=-1.0), ValueError, "edges must be"),
        (lambda: SparseTensor(torch.zeros(2, 1), GOOD).with_features(torch.zeros(3, 1)), ValueError, "one row a"),
        (lambda: SparseConv3d(1, 1, 3, 3)(SparseTensor(torch.zeros(1, 1), CORNER)), ValueError, "coordinate x spans"),
        (lambda: voxelize(torch.full((1, 3), 1e6), torch.zeros(1), CartesianGrid()), ValueError, "coordinate x spans"),
    ],
)
def test_errors_are_one_clear_sentence(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_offsets_are_in_the_published_order():
    expected = [(a, b, c) for c, b, a in itertools.product((0, 1), (-1, 0, 1), (-2, -1, 0, 1, 2))]
    assert reference.kernel_offsets((5, 3, 2)) == expected
