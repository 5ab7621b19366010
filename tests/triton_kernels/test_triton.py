"""Triton's kernels against the definitions and against torch: on a GPU where there is one, else in the interpreter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.triton_kernels.conftest import DEVICE, listed
from tests.triton_kernels.test_reference import cloud, tuples
from triton_kernels import (
    BatchNorm,
    CartesianGrid,
    CylindricalGrid,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseTensor,
    backend,
    normalization,
    reference,
    voxelize,
)
from triton_kernels.coordinates import HIGHEST, LOWEST, pack, unpack
from triton_kernels.hash_table import HashTable, distinct
from triton_kernels.kernel_map import build_pairs
from triton_kernels.kernels import normalization as normalization_kernels
from triton_kernels.kernels.kernel_map import build_tiles

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def defined(layer, x: SparseTensor, y: SparseTensor, transposed: bool):
    """The reference's output of a layer in float64 on the CPU, and the features and weight that it depends on."""
    fine, coarse = (y, x) if transposed else (x, y)
    step = [d * s for d, s in zip(layer.dilation, fine.stride, strict=True)]
    found = reference.pairs(tuples(fine.coordinates), tuples(coarse.coordinates), layer.kernel_size, step)
    features = x.features.detach().double().cpu().requires_grad_()
    weight = layer.weight.detach().to(x.features.dtype).double().cpu().requires_grad_()
    return reference.convolve(features, weight, found, len(y.features), transposed), features, weight


def compare(layer, x: SparseTensor, transposed: bool = False) -> None:
    """Output and both gradients of a layer against the definition."""
    layer = layer.to(DEVICE, x.features.dtype)
    x.features.requires_grad_()
    y = layer(x)
    expected, features, weight = defined(layer, x, y, transposed)
    grad = torch.randn(y.features.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, y.features.dtype)
    y.features.backward(grad)
    if len(expected):
        expected.backward(grad.double().cpu())
    tolerance = TOLERANCE[x.features.dtype]
    pairs = ((y.features, expected), (x.features.grad, features.grad), (layer.weight.grad, weight.grad))
    for ours, theirs in pairs:
        assert relative(ours, torch.zeros_like(ours) if theirs is None else theirs) < tolerance


def tensor(n: int, channels: int, dtype=torch.float32, spread: int = 4) -> SparseTensor:
    torch.manual_seed(n)
    coordinates = cloud(n, n, spread)
    return SparseTensor(torch.randn(len(coordinates), channels).to(DEVICE, dtype), coordinates.to(DEVICE))


@pytest.mark.parametrize(
    ("n", "cin", "cout", "kernel", "stride", "dilation"),
    [
        (0, 1, 7, 3, 1, 1),
        (1, 5, 7, 3, 1, 1),
        (40, 17, 40, 3, 1, 1),
        (40, 1, 7, (5, 3, 2), 1, 1),
        (40, 5, 7, (5, 3, 1), 1, 2),
        (60, 5, 96, 2, 2, 1),
        (60, 5, 7, 3, 2, 1),
        (60, 5, 7, 1, 2, 1),
        (60, 5, 7, 3, (1, 2, 1), 1),
        (30, 5, 7, 5, 1, 1),  # more offsets than a mask has bits
        (200, 96, 40, 3, 1, 1),
    ],
)
def test_convolution_and_its_gradients(triton_device, n, cin, cout, kernel, stride, dilation):
    compare(SparseConv3d(cin, cout, kernel, stride, dilation), tensor(n, cin))


@pytest.mark.parametrize("n", [0, 1, 60])
def test_transposed_convolution_and_its_gradients(triton_device, n):
    x = tensor(n, 5)
    coarse = SparseConv3d(5, 5, 2, 2).to(DEVICE)(x)
    compare(SparseConvTranspose3d(5, 7, 2, 2), coarse.with_features(coarse.features.detach()), transposed=True)
    compare(SparseConvTranspose3d(5, 7, 3, 2), SparseTensor(coarse.features.detach(), coarse.coordinates, 2), True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(triton_device, dtype):
    compare(SparseConv3d(17, 40, 3), tensor(60, 17, dtype))
    x = tensor(60, 17, dtype)
    x.features.fill_(200)  # sums of products beyond float16's 65504
    layer = SparseConv3d(17, 7, 3).to(DEVICE)
    with torch.autocast(DEVICE.type, dtype):
        y = layer(x)
    y.features.backward(torch.full_like(y.features, 60))
    assert y.features.dtype == dtype
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.max() > 65504 * (dtype == torch.float16)


def test_1023_rows_span_many_tiles(triton_device):
    x = tensor(1500, 5, spread=6)
    rows = [len(x.coordinates)]
    x = SparseTensor(x.features[:1023], x.coordinates[:1023])
    compare(SparseConv3d(5, 7, 3), x)
    assert rows[0] >= 1023


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 60), kernel=st.tuples(*[st.integers(1, 3)] * 3))
def test_maps_and_plans_by_definition(seed, n, kernel):
    with backend.forced("triton"):
        coordinates = cloud(n, seed, spread=3)
        x = SparseTensor(torch.zeros(len(coordinates), 1, device=DEVICE), coordinates.to(DEVICE))
        found = x.cache.kernel_map(x.stride, x.stride, kernel, (1, 1, 1), torch.float32)
    expected = sorted(reference.pairs(tuples(coordinates), tuples(coordinates), kernel, (1, 1, 1)))
    assert sorted(listed(found)) == expected
    for plan, ours, other in ((found.coarse, 2, 1), (found.fine, 1, 2)):
        if plan is None:
            assert all(k % 2 for k in kernel)
            continue
        order, table = plan.order.tolist(), plan.table.tolist()
        assert sorted(order) == list(range(len(coordinates)))
        rows = {(k, row): found for k, column in enumerate(table) for row, found in zip(order, column, strict=True)}
        assert {place: neighbour for place, neighbour in rows.items() if neighbour >= 0} == {
            (pair[0], pair[ours]): pair[other] for pair in expected
        }
        for tile, count in enumerate(plan.counts.tolist()):
            mine = slice(tile * plan.height, (tile + 1) * plan.height)
            occurring = [k for k, column in enumerate(table) if max(column[mine], default=-1) >= 0]
            assert plan.lists[tile, :count].tolist() == occurring


@pytest.mark.parametrize(("size", "saved"), [(3, 0.8), (5, 0.95)])  # 125 offsets share the mask's 62 bits
def test_similar_rows_share_a_tile(triton_device, size, saved):
    """Sorting by neighbours must save work: fewer listed offsets than the same rows unsorted."""
    x = tensor(1500, 1, spread=8)
    table = build_tiles(x.coordinates, x.coordinates, (size,) * 3, (1, 1, 1), HashTable.of(x.coordinates))
    order = table.coarse.order.long()
    unsorted = torch.empty_like(table.coarse.table)
    unsorted[:, order] = table.coarse.table
    height = table.coarse.height
    listed_unsorted = sum(int((part >= 0).any(1).sum()) for part in unsorted.split(height, 1))
    assert int(table.coarse.counts.sum()) < saved * listed_unsorted


def test_the_edge_of_the_range_is_no_seam(device):
    coordinates = torch.tensor(
        [[0, 0, 0, HIGHEST[3]], [0, 0, 1, LOWEST[3]], [1, LOWEST[1], 0, 0], [0, HIGHEST[1], 0, 0]]
    )
    x = SparseTensor(torch.ones(4, 1, device=device), coordinates.to(device))
    found = x.cache.kernel_map(x.stride, x.stride, (3, 3, 3), (1, 1, 1), torch.float32)
    assert sorted(listed(found)) == [(13, i, i) for i in range(4)]


AXES = [st.integers(-3, 3) | st.integers(low + 4, high) for low, high in zip(LOWEST, HIGHEST, strict=True)]
CELLS = st.tuples(st.integers(0, 2) | st.integers(0, HIGHEST[0]), *AXES[1:])


@settings(max_examples=20)
@given(cells=st.lists(CELLS, max_size=80), asked=st.lists(CELLS, max_size=5))
def test_distinct_coordinates_and_their_tables_by_definition(cells, asked):
    strides = ((1, 1, 1), (2, 2, 2), (3, 1, 4))
    levels = [reference.downsample(cells, stride) for stride in strides]
    given = torch.tensor(cells, dtype=torch.int32, device=DEVICE).view(-1, 4)
    for name in ("torch", "triton"):
        with backend.forced(name):
            search = distinct(given, strides)
            ends = search.ends.tolist() or [0, 0, 0]
            assert ends == [sum(map(len, levels[:i])) for i in (1, 2, 3)]
            found, first, inverse, tables = search.collect(ends)
            assert tuples(found) == sum(levels, [])
            assert first.tolist() == [cells.index(cell) for cell in levels[0]]
            assert inverse.tolist() == [levels[0].index(cell) for cell in cells]
            for level, table in zip(levels, tables, strict=True):
                queries = list(dict.fromkeys([*asked, *level]))
                fine, coarse = (torch.tensor(c, device=DEVICE).int().view(-1, 4) for c in (level, queries))
                build = build_tiles if name == "triton" else build_pairs
                rows = [(0, level.index(cell), i) for i, cell in enumerate(queries) if cell in level]
                assert listed(build(fine, coarse, (1, 1, 1), (1, 1, 1), table)) == rows


def test_keys_and_back():
    corners = torch.tensor([LOWEST, HIGHEST, (0, -1, -1, -1), (3, 1, -2, 3)], dtype=torch.int32)
    assert torch.equal(unpack(pack(corners)), corners)
    assert tuples(unpack(pack(corners[1:], (2, 4, 5)))) == reference.downsample(tuples(corners[1:]), (2, 4, 5))
    assert unpack(pack(corners[:0])).shape == (0, 4)


@pytest.mark.parametrize("n", [0, 1, 300, 1023])
def test_voxelize_is_the_same_on_both_backends(n):
    rng = np.random.default_rng(n)
    points = torch.from_numpy(rng.normal(0, 0.4, (n, 3)).astype(np.float32)).to(DEVICE)
    batch = torch.from_numpy(rng.choice((0, 2), n)).to(DEVICE)  # item 1 is empty
    results = []
    for name in ("torch", "triton"):
        with backend.forced(name):
            results.append(voxelize(points, batch, CylindricalGrid(), strides=(1, 2, 3, 4, (1, 2, 5))))
    a, b = results
    assert torch.equal(a.first, b.first) and torch.equal(a.inverse, b.inverse) and a.levels.keys() == b.levels.keys()
    for stride, coordinates in a.levels.items():
        assert torch.equal(coordinates, b.levels[stride])
        assert tuples(coordinates) == reference.downsample(tuples(a.coordinates), stride)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([[0.0, 1, 2], [float("nan"), 0, 0], [0, float("inf"), 0]], "2 of 3 points are not finite"),
        ([[0.0, 1, 2], [0, -1e6, 0]], "coordinate y spans -10000000 to 10"),
        ([[0.0, 1, 2], [0, 0, 1e12]], "coordinate z spans"),
    ],
)
def test_points_that_have_no_voxel(device, points, words):
    with pytest.raises(ValueError, match=words):
        voxelize(torch.tensor(points, device=device), torch.zeros(len(points), device=device), CartesianGrid(), (1, 2))


@pytest.mark.parametrize("n", [1, 300, 1023])
def test_maps_from_voxelizing_are_those_from_coordinates(device, n):
    """The tables made by voxelize give the same maps as tables made from the coordinates."""
    rng = np.random.default_rng(n)
    points = torch.from_numpy(rng.normal(0, 0.6, (n, 3)).astype(np.float32)).to(device)
    v = voxelize(points, torch.arange(n, device=device) % 2, CylindricalGrid(), strides=(1, 2, 4))
    x, y = (SparseTensor(torch.zeros(len(v.first), 1, device=device), c) for c in (v, v.coordinates))
    y.cache.coordinates |= v.levels
    one, two, four = ((s,) * 3 for s in (1, 2, 4))
    for fine, coarse, kernel in ((one, one, 3), (one, two, 2), (two, four, 3), (four, four, 3)):
        a, b, double = (
            t.cache.kernel_map(fine, coarse, (kernel,) * 3, one, dtype)
            for t, dtype in ((x, torch.float32), (y, torch.float32), (x, torch.float64))
        )
        assert listed(a) == listed(b) == listed(double) and len(listed(a)) > 0
        for name, value in vars(a.coarse).items():
            if name not in ("lists", "height", "counts"):  # the end of a list is not written
                assert torch.equal(value, getattr(b.coarse, name))
    assert all(x.cache.tables[stride, type(table)] is table for stride, table in v.tables.items())  # not made again


def test_empty_sides_of_a_map(triton_device):
    some, none = tensor(40, 1).coordinates, torch.empty(0, 4, dtype=torch.int32, device=triton_device)
    for fine, coarse in ((some, none), (none, some), (none, none)):
        found = build_tiles(fine, coarse, (2, 2, 2), (1, 1, 1), HashTable.of(fine))
        assert listed(found) == [] and found.start.tolist() == [0] * 9
        assert (found.coarse.table == -1).all() and (found.fine.table == -1).all()
        assert not found.coarse.counts.any() and not found.fine.counts.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_mean_of_each_voxel_and_its_gradient(device, n, dtype):
    torch.manual_seed(n)
    points, batch = torch.randn(n, 3, device=device), torch.arange(n, device=device) % 2
    v = voxelize(points, batch, CylindricalGrid(1.0, 30.0, 1.0))
    values = torch.randn(n, 5, device=device, dtype=dtype, requires_grad=True)
    mean, exact = v.mean(values), values.detach().double().requires_grad_()
    expected = reference.voxel_mean(exact, v.inverse, len(v.first))
    assert mean.dtype == dtype and mean.shape == (len(v.first), 5)
    assert (len(mean) < n) == (n == 300) and torch.equal(mean, v.mean(values))
    grad = torch.randn_like(mean)
    (ours,), (theirs,) = torch.autograd.grad(mean, values, grad), torch.autograd.grad(expected, exact, grad.double())
    for a, b in ((mean, expected), (ours, theirs)):
        assert torch.allclose(a.double(), b, atol=1e-6 if dtype == torch.float32 else 1e-14)
    with pytest.raises(ValueError, match="one row a point"):
        v.mean(values[:, 0])


@pytest.mark.parametrize(("n", "channels"), [(2, 1), (60, 5), (300, 130)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_norm_residual_and_relu(device, n, channels, residual, relu, monkeypatch):
    monkeypatch.setattr(normalization, "VALUES", 100)  # several blocks
    monkeypatch.setattr(normalization_kernels, "PROGRAMS", 3)  # several, of several tiles each
    torch.manual_seed(n)
    x = (torch.randn(n, channels, device=device) * 3 + 10).requires_grad_()
    other = torch.randn(n, channels, device=device, requires_grad=True) if residual else None
    coordinates = torch.arange(n, device=device)[:, None] * torch.tensor([0, 1, 1, 1], device=device)
    norm = BatchNorm(channels).to(device)
    torch.nn.init.uniform_(norm.bn.weight)
    torch.nn.init.uniform_(norm.bn.bias)
    given, before = SparseTensor(x, coordinates), (norm.bn.running_mean.clone(), norm.bn.running_var.clone())
    out = norm(given, given.with_features(other) if residual else None, relu).features
    variance, mean = torch.var_mean(x.detach().double(), 0)
    for now, was, seen in zip((norm.bn.running_mean, norm.bn.running_var), before, (mean, variance), strict=True):
        assert torch.allclose(now.double(), 0.9 * was + 0.1 * seen, rtol=1e-5, atol=1e-6)
    assert int(norm.bn.num_batches_tracked) == 1
    inputs = [x, norm.bn.weight, norm.bn.bias] + [other] * residual
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = reference.normalize(*exact[:3], norm.bn.eps, exact[3] if residual else None, relu)
    assert relative(out, expected.detach()) < 1e-5
    grad = torch.randn(n, channels, device=device)
    ours = torch.autograd.grad(out, inputs, grad)
    for a, b in zip(ours, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert (a.double() - b).abs().max() < 2e-5 * max(1, float(b.abs().max()))


def test_results_are_the_same_bit_for_bit(triton_device):
    """The same from run to run; with the rows in another order the same up to rounding."""
    x = tensor(300, 5)
    layer = SparseConv3d(5, 7, 3).to(DEVICE)

    def run(order):
        features = x.features.detach()[order].requires_grad_()
        y = layer(SparseTensor(features, x.coordinates[order]))
        return y.features, *torch.autograd.grad(y.features.square().sum(), (features, layer.weight))

    straight = torch.arange(len(x.coordinates), device=DEVICE)
    shuffled = torch.randperm(len(x.coordinates)).to(DEVICE)
    first, again, other = run(straight), run(straight), run(shuffled)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert relative(other[0], first[0].detach()[shuffled]) < 1e-6
    assert relative(other[1], first[1][shuffled]) < 1e-6
    assert relative(other[2], first[2]) < 1e-6
