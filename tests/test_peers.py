"""The benchmarks' adapters of other engines, each on a stand-in of its library.

A stand-in has only the interface that the library documents, with the library's order of weights and coordinates, and
computes with the sums below. These tests therefore check the adapters (weights, coordinates, levels, types, gradients),
not the libraries; `peers.check` compares an installed library with our engine whenever a benchmark runs.
"""

import sys
from importlib.machinery import ModuleSpec
from itertools import product
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks import peers
from slidr.networks.minkunet import MinkUNet
from triton_kernels import SparseTensor, layouts

SEEN = set()  # types of the features that reached a stand-in's layers
BUILT = []  # maps built; where the library does not cache them, the adapter must


def taps(size: int) -> range:
    """A kernel's offsets along an axis: odd kernels reach both sides, even ones forward."""
    return range(-(size // 2), size // 2 + 1) if size % 2 else range(size)


def convolve(x, matrices: dict, fine: list, coarse: list, up: bool = False):
    """Sums of x[input] @ matrix wherever fine = coarse + offset, in the units of `fine`; `up` writes the fine rows."""
    SEEN.add(x.dtype)
    row = {c: i for i, c in enumerate(fine)}
    out = 0
    for offset, matrix in matrices.items():
        moved = [(b, *(v + o for v, o in zip(c, offset, strict=True))) for b, *c in coarse]
        pairs = [(row[at], j) for j, at in enumerate(moved) if at in row]
        fine_rows, coarse_rows = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        read, written = (coarse_rows, fine_rows) if up else (fine_rows, coarse_rows)
        whole = x.new_zeros(len(fine if up else coarse), matrix.shape[1])
        out = out + whole.index_add(0, written, x[read] @ matrix.to(x.dtype))
    return out


def rows(coordinates: torch.Tensor) -> list[tuple]:
    assert coordinates.dtype == torch.int32 and coordinates.is_contiguous()
    return list(map(tuple, coordinates.tolist()))


def halved(fine: list, shape: list) -> tuple[list, list]:
    """Coordinates and shape under a kernel of 2 with stride 2 as spconv and torchsparse have them: no multiples of the
    stride but divided by it, nothing beyond the last whole step. The rows' order is the library's own."""
    shape = [(s - 2) // 2 + 1 for s in shape]
    coarse = sorted({(b, *(v // 2 for v in c)) for b, *c in fine}, reverse=True)
    return [c for c in coarse if all(v < s for v, s in zip(c[1:], shape, strict=True))], shape


def doubled(coarse: list) -> list:
    return [(b, *(2 * v for v in c)) for b, *c in coarse]


def inside(coordinates: list, batches: int, shape: list) -> list:
    """The coordinates; fails for one outside, where the libraries drop it or read beyond their tables."""
    for b, *c in coordinates:
        assert 0 <= b < batches and all(0 <= v < s for v, s in zip(c, shape, strict=True))
    return coordinates


class Spconv:
    """spconv.pytorch: weights [Cout, k0, k1, k2, Cin]; maps are found again by `indice_key`."""

    class SparseConvTensor:
        def __init__(self, features, indices, spatial_shape, batch_size, known=None):
            indices = indices if isinstance(indices, list) else rows(indices)
            self.features, self.indices = features, inside(indices, batch_size, spatial_shape)
            self.spatial_shape, self.batch_size = spatial_shape, batch_size
            self.known = {} if known is None else known

        def replace_feature(self, features):
            return self.on(features, self.indices, self.spatial_shape)

        def on(self, features, indices, shape):
            return Spconv.SparseConvTensor(features, indices, shape, self.batch_size, self.known)

    class SubMConv3d(nn.Module):
        def __init__(self, c_in, c_out, kernel_size, stride=1, bias=True, indice_key=None):
            super().__init__()
            assert not bias
            self.key, self.size = indice_key, kernel_size
            self.weight = nn.Parameter(torch.zeros(c_out, *[kernel_size] * 3, c_in))

        def matrices(self):
            places = product(range(self.size), repeat=3)
            return {tuple(taps(self.size)[i] for i in place): self.weight[:, *place].T for place in places}

        def forward(self, x):
            BUILT.extend({self.key} - x.known.keys())
            assert x.known.setdefault(self.key, x.indices) == x.indices  # else it would take another level's map
            return x.replace_feature(convolve(x.features, self.matrices(), x.indices, x.indices))

    class SparseConv3d(SubMConv3d):
        def forward(self, x):
            coarse, shape = halved(x.indices, x.spatial_shape)
            assert self.key not in x.known
            BUILT.append(self.key)
            x.known[self.key] = x.indices, x.spatial_shape
            return x.on(convolve(x.features, self.matrices(), x.indices, doubled(coarse)), coarse, shape)

    class SparseInverseConv3d(SubMConv3d):
        def forward(self, x):
            fine, shape = x.known[self.key]
            return x.on(convolve(x.features, self.matrices(), fine, doubled(x.indices), up=True), fine, shape)


class Minkowski:
    """MinkowskiEngine: weights [K, Cin, Cout], axis 0 fastest; coordinates stay multiples of the tensor stride."""

    class SparseTensor:
        def __init__(self, features, coordinates=None, *, coordinate_map_key=None, coordinate_manager=None):
            self.F, self.coordinate_map_key, self.coordinate_manager = features, coordinate_map_key, coordinate_manager
            if coordinates is not None:
                self.coordinate_map_key, self.coordinate_manager = 1, {1: rows(coordinates)}
            assert len(features) == len(self.coordinate_manager[self.coordinate_map_key])

    class MinkowskiConvolution(nn.Module):
        up = False

        def __init__(self, c_in, c_out, kernel_size, stride=1, dimension=None):
            super().__init__()
            assert dimension == 3
            self.size, self.stride = kernel_size, stride
            self.kernel = nn.Parameter(torch.zeros(kernel_size**3, c_in, c_out))

        def forward(self, x):
            here, levels = x.coordinate_map_key, x.coordinate_manager
            there = here // self.stride if self.up else here * self.stride
            if there not in levels:
                levels[there] = sorted({(b, *(v // there * there for v in c)) for b, *c in levels[here]}, reverse=True)
            step, (fine, coarse) = min(here, there), (levels[min(here, there)], levels[max(here, there)])
            reach = [t * step for t in taps(self.size)]
            offsets = [(a, b, c) for c, b, a in product(reach, repeat=3)]
            out = convolve(x.F, dict(zip(offsets, self.kernel, strict=True)), fine, coarse, self.up)
            return Minkowski.SparseTensor(out, coordinate_map_key=there, coordinate_manager=levels)

    class MinkowskiConvolutionTranspose(MinkowskiConvolution):
        up = True


class Torchsparse:
    """torchsparse 2.1: weights [K, Cin, Cout], axis 0 fastest if K is odd, slowest if it is even; batch first."""

    class SparseTensor:
        def __init__(self, feats, coords, stride=1, spatial_range=None):
            coords = coords if isinstance(coords, list) else rows(coords)
            self.feats, self.coords, self.stride = feats, inside(coords, spatial_range[0], spatial_range[1:]), stride
            self.spatial_range, self._caches = spatial_range, {stride: (coords, spatial_range)}

        def on(self, feats, coords, stride, spatial_range):
            other = Torchsparse.SparseTensor(feats, coords, stride, spatial_range)
            other._caches = self._caches
            other._caches.setdefault(stride, (coords, spatial_range))
            return other

    @staticmethod
    def fapply(x, f):
        return x.on(f(x.feats), x.coords, x.stride, x.spatial_range)

    class Conv3d(nn.Module):
        def __init__(self, c_in, c_out, kernel_size=3, stride=1, bias=False, transposed=False):
            super().__init__()
            self.size, self.stride, self.transposed = kernel_size, stride, transposed
            self.kernel = nn.Parameter(torch.zeros(kernel_size**3, c_in, c_out))

        def forward(self, x):
            offsets = list(product(taps(self.size), repeat=3))
            offsets = [o[::-1] for o in offsets] if self.size % 2 else offsets
            matrices = dict(zip(offsets, self.kernel, strict=True))
            if self.transposed:
                fine, extent = x._caches[x.stride // 2]
                out = convolve(x.feats, matrices, fine, doubled(x.coords), up=True)
                return x.on(out, fine, x.stride // 2, extent)
            if self.stride == 1:
                return x.on(convolve(x.feats, matrices, x.coords, x.coords), x.coords, x.stride, x.spatial_range)
            coarse, shape = halved(x.coords, x.spatial_range[1:])
            out = convolve(x.feats, matrices, x.coords, doubled(coarse))
            return x.on(out, coarse, x.stride * 2, [x.spatial_range[0], *shape])


class FlexGemm:
    """flex_gemm.ops.spconv: weights [Cout, k0, k1, k2, Cin], shape [batches, channels, three axes]."""

    @staticmethod
    def sparse_submanifold_conv3d(feats, coords, shape, weight, bias=None, neighbor_cache=None, dilation=(1, 1, 1)):
        batches, channels, *axes = shape
        size = weight.shape[1]
        assert feats.dtype == weight.dtype == bias.dtype and bias.shape == weight.shape[:1] and not bias.any()
        assert feats.shape[1] == channels and weight.shape[1:] == (size, size, size, channels)
        known = neighbor_cache
        if known is None:
            known = inside(rows(coords), batches, axes)
            BUILT.append(len(known))
        places = product(range(size), repeat=3)
        matrices = {tuple(taps(size)[i] for i in place): weight[:, *place].T for place in places}
        return convolve(feats, matrices, known, known), known


def module(name: str, source: type, *names: str) -> ModuleType:
    """A module of that name with these of the stand-in's attributes."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    for attribute in names:
        setattr(made, attribute, getattr(source, attribute))
    return made


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Every library replaced by its stand-in, also where the real one is installed."""
    SEEN.clear(), BUILT.clear()
    spconv = ("SparseConvTensor", "SubMConv3d", "SparseConv3d", "SparseInverseConv3d")
    minkowski = ("SparseTensor", "MinkowskiConvolution", "MinkowskiConvolutionTranspose")
    for made in (
        *(module(name, Spconv) for name in ("spconv", "spconv.pytorch.ops", "spconv_triton", "flex_gemm")),
        module("spconv_triton.pytorch.ops", Spconv),
        *(module(f"{name}.pytorch", Spconv, *spconv) for name in ("spconv", "spconv_triton")),
        module("MinkowskiEngine", Minkowski, *minkowski),
        module("torchsparse", Torchsparse, "SparseTensor"),
        module("torchsparse.nn", Torchsparse, "Conv3d"),
        module("torchsparse.nn.utils", Torchsparse, "fapply"),
        module("flex_gemm.ops.spconv", FlexGemm, "sparse_submanifold_conv3d"),
    ):
        monkeypatch.setitem(sys.modules, made.__name__, made)


@pytest.fixture(scope="module")
def cloud():
    """Two items on both sides of zero, extents that are no multiples of 16; rows in no order."""
    torch.manual_seed(0)
    low, high = torch.tensor([-21, -3, -18]), torch.tensor([20, 15, 5])
    corners = torch.stack([low + (high - low) * torch.rand(3) for _ in range(12)]).int()
    voxels = (corners[:, None] + torch.randint(0, 3, (12, 20, 3))).reshape(-1, 3)
    batch = (torch.arange(len(voxels)) // 20 % 2)[:, None]
    coordinates = torch.unique(torch.cat((batch, voxels), 1), dim=0).int()
    coordinates = coordinates[torch.randperm(len(coordinates))].contiguous()
    return torch.randn(len(coordinates), 1, dtype=torch.float64), coordinates


def built(name: str, dtype: torch.dtype = torch.float64) -> tuple[MinkUNet, peers.Step]:
    torch.manual_seed(1)
    network = MinkUNet(8, "res16unet14c", width=0.25, normalize=True).to(dtype)
    return network, peers.PEERS[name][1](network)


def gradients(network: MinkUNet, out: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients by parameter, of a loss that changes under any permutation of rows or channels."""
    network.zero_grad()
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_computes_what_our_engine_does(name, cloud):
    features, coordinates = cloud
    before = coordinates.clone()
    network, peer = built(name)
    ours = network(SparseTensor(features, coordinates)).features
    expected = gradients(network, ours)
    theirs = peer(features, coordinates)
    found = gradients(network, theirs)
    assert torch.allclose(theirs, ours, atol=1e-9)
    assert torch.equal(coordinates, before)
    names = {layer: f"{path}.weight" for path, layer in network.named_modules()}
    for layer, replacement in peer.layers.items():
        assert names[layer] not in found  # it ran on the peer's weight, not on ours
        if name in ("MinkowskiEngine", "torchsparse"):
            weight, size = replacement.kernel.grad, layer.kernel_size
            ported = layouts.from_torchsparse(weight, size) if name == "torchsparse" else layouts.from_minkowski(weight)
        else:
            ported = layouts.from_spconv(replacement.grad if name.startswith("flex_gemm") else replacement.weight.grad)
        found[names[layer]] = ported
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        assert torch.allclose(found[parameter], gradient, atol=1e-9), parameter


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_replaces_the_layers_that_its_name_says(name):
    network, peer = built(name)
    convolutions = [m for m in network.modules() if hasattr(m, "kernel_size") and m.kernel_size != (1, 1, 1)]
    submanifold = [m for m in convolutions if m.stride == (1, 1, 1)]
    assert len(submanifold) == 17 and len(convolutions) == 25
    assert list(peer.layers) == (submanifold if "strided layers: ours" in name else convolutions)


@pytest.mark.parametrize("name, maps", {"spconv": 9, "flex_gemm (strided layers: ours)": 5}.items())
def test_a_peer_builds_each_map_once(name, maps, cloud):
    """Five levels, and for spconv four transitions between them: building a map twice would slow the peer down."""
    built(name)[1](*cloud)
    assert len(BUILT) == len(set(BUILT)) == maps


@pytest.mark.parametrize("name", ["spconv", "flex_gemm (strided layers: ours)"])  # theirs are modules; parameters
def test_no_gradient_is_left_for_the_next_step_to_add_to(name, cloud):
    network, step = built(name)
    step(*cloud).sum().backward()
    theirs = [p for t in step.layers.values() for p in (t.parameters() if isinstance(t, nn.Module) else (t,))]
    assert theirs and all(p.grad is not None for p in (*theirs, *network.final.parameters()))
    peers.forget_gradients(peers.leaves(network, step))
    assert all(p.grad is None for p in (*theirs, *network.parameters()))


def test_our_engine_is_itself_again_after_a_peer(cloud):
    features, coordinates = cloud
    network, peer = built("torchsparse")
    peer(features, coordinates)
    SEEN.clear()
    network(SparseTensor(features, coordinates))
    assert not SEEN


def test_a_peer_takes_a_second_cloud(cloud):
    """No map of the first cloud may be reused."""
    features, coordinates = cloud
    few = coordinates[:, 0] == 1
    coordinates = coordinates - torch.tensor([1, 0, 0, 0], dtype=torch.int32)
    for name in peers.PEERS:
        network, peer = built(name)
        peer(*cloud)
        ours = network(SparseTensor(features[few], coordinates[few])).features
        assert torch.allclose(peer(features[few], coordinates[few]), ours, atol=1e-9), name


@pytest.mark.parametrize(
    "name, dtype",
    {
        "MinkowskiEngine": torch.float32,
        "torchsparse": torch.float16,
        "flex_gemm (strided layers: ours)": torch.bfloat16,
    }.items(),
)
def test_a_peer_gets_the_lower_precision_that_it_knows(name, dtype, cloud):
    features, coordinates = cloud
    network, peer = built(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = peer(features.float(), coordinates)
    assert SEEN == {dtype}
    gradients(network, out.float())
    first = next(iter(peer.layers.values()))
    gradient = first.grad if name.startswith("flex_gemm") else first.kernel.grad
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_peers_are_listed_where_they_run(monkeypatch):
    assert list(peers.available(torch.device("cuda"))) == list(peers.PEERS)
    assert list(peers.available(torch.device("cpu"))) == ["spconv", "MinkowskiEngine"]
    monkeypatch.delitem(sys.modules, "torchsparse")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: sys.modules[name].__spec__ if name in sys.modules else None
    )
    assert "torchsparse" not in peers.available(torch.device("cuda"))
