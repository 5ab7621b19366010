"""The same network, the same weights, on other engines: what the engine's benchmarks compare with.

Each peer runs our MinkUNet with its own convolutions and kernel maps in place of ours, and torch's batch norm and ReLU
as its users write them; 1x1x1 layers are plain products everywhere. A peer that is not installed is left out.
"""

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from torch import nn

from slidr.networks.minkunet import MinkUNet
from triton_kernels import BatchNorm, SparseConv3d, SparseConvTranspose3d, SparseTensor, layouts, modules
from triton_kernels.kernel_map import BLOCK, Pairs

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # features [V, 1], coordinates [V, 4] -> output [V, 64]


def plain_norm(norm: BatchNorm, x, residual=None, relu: bool = False):
    """Batch norm, sum and ReLU one after the other."""
    features = norm.bn(x.features)
    features = features if residual is None else features + residual.features
    return x.with_features(torch.relu(features) if relu else features)


def listed(kernel_map: Pairs) -> torch.Tensor:
    """Every (k, fine row, coarse row) of a map `[P, 3]` int64, by k, then by coarse row."""
    side = kernel_map.coarse
    n = len(side.starts) - 1
    blocks = max(-(-n // BLOCK), 1)
    volume = len(side.counts) // blocks
    ks = torch.arange(volume).repeat(blocks).repeat_interleave(torch.tensor(side.counts)).to(side.read.device)
    found = torch.stack((ks, side.read, side.written), 1)
    if kernel_map.fine is None:  # the middle offset, which the map leaves out
        rows = torch.arange(n, device=ks.device)
        found = torch.cat((found, torch.stack((torch.full_like(rows, volume // 2), rows, rows), 1)))
    return found[torch.argsort(found[:, 0] * n + found[:, 2])]


def gather_multiply_scatter(x, weight, kernel_map, transposed=False):
    """What one writes first: one gather, product and scatter per kernel offset, gradients by autograd."""
    ks, rows_in, rows_out = listed(kernel_map).T
    side = kernel_map.fine if transposed else kernel_map.coarse
    if transposed:
        rows_in, rows_out = rows_out, rows_in
    out = x.new_zeros(len(side.starts) - 1, weight.shape[2])
    for k in range(len(weight)):
        mine = ks == k
        out = out.index_add(0, rows_out[mine], x[rows_in[mine]] @ weight[k])
    return out


def plain(network: MinkUNet) -> Step:
    """Our maps, everything else in plain PyTorch."""

    def step(features, coordinates):
        with (
            mock.patch.object(modules, "convolve", gather_multiply_scatter),
            mock.patch.object(BatchNorm, "forward", plain_norm),
        ):
            return network(SparseTensor(features, coordinates)).features

    return step


class _Theirs:
    """What MinkUNet expects of a sparse tensor, around a library's own.

    `read(tensor)` gives its features, `write(tensor, features)` a tensor with other features on the same coordinates.
    """

    cache = stride = None  # `cat` compares them; here coordinates, strides and maps are the library's business

    def __init__(self, tensor, read: Callable, write: Callable):
        self.tensor, self.read, self.write = tensor, read, write

    @property
    def features(self) -> torch.Tensor:
        return self.read(self.tensor)

    def with_features(self, features: torch.Tensor) -> "_Theirs":
        return _Theirs(self.write(self.tensor, features), self.read, self.write)


def _through(theirs: nn.Module, x: _Theirs) -> _Theirs:
    return _Theirs(theirs(x.tensor), x.read, x.write)


def _convolutions(network: MinkUNet) -> Iterator[tuple[str, SparseConv3d | SparseConvTranspose3d]]:
    """Name and layer of all that is more than a plain product."""
    for name, layer in network.named_modules():
        if isinstance(layer, SparseConv3d | SparseConvTranspose3d) and len(layer.weight) > 1:
            yield name, layer


def _moved(coordinates: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Coordinates `[V, 4]` int32 without negative ones, and the extent of each column.

    Moved by multiples of 16 and with extents of such, so that the four levels below halve both exactly.
    """
    moved = coordinates.to(torch.int32, copy=True)
    moved[:, 1:] -= moved[:, 1:].amin(0) // 16 * 16
    batches, *axes = (moved.amax(0) + 1).tolist()
    return moved.contiguous(), [batches, *(-(-a // 16) * 16 for a in axes)]


def _replaced(network: MinkUNet, layers: dict, start: Callable, through: Callable = _through, half=None) -> Step:
    """The network with a library's layers in place of ours.

    Args:
        layers: ours -> theirs; what is not in it stays ours. Kept as `layers` of the result.
        start: features and coordinates -> the first sparse tensor.
        through: their layer and a sparse tensor -> the next one.
        half: the type to use where autocast asks for another; float32 for a library that knows no lower one.
    """
    layers = {ours: theirs.to(ours.weight.device, ours.weight.dtype) for ours, theirs in layers.items()}

    def forward(own: Callable) -> Callable:
        return lambda layer, x: through(layers[layer], x) if layer in layers else own(layer, x)

    def step(features, coordinates):
        kind = features.device.type
        with contextlib.ExitStack() as patches:
            if half is not None and torch.is_autocast_enabled(kind):
                patches.enter_context(torch.autocast(kind, half, enabled=half != torch.float32))
                features = features.to(half)
            for convolution in (SparseConv3d, SparseConvTranspose3d):
                patches.enter_context(mock.patch.object(convolution, "forward", forward(convolution.forward)))
            patches.enter_context(mock.patch.object(BatchNorm, "forward", plain_norm))
            return network(start(features, coordinates)).features

    step.layers = layers
    return step


def spconv(network: MinkUNet, package: str) -> Step:
    """spconv 2, or a package with its interface. Knows no negative coordinates and no bfloat16.

    Source: `{package}/pytorch/conv.py`; for bfloat16 issue 673 of traveller59/spconv.
    """
    library = importlib.import_module(f"{package}.pytorch")
    if not torch.cuda.is_available():  # its backward asks for a CUDA stream on the CPU too, and does nothing with it
        importlib.import_module(f"{package}.pytorch.ops").get_current_stream = lambda: 0
    layers = {}
    for name, layer in _convolutions(network):
        c_in, c_out, size = *layer.weight.shape[1:], layer.kernel_size[0]
        level = next(int(c) for c in name if c.isdigit())  # conv1p1s2 and block1 lie on level 1; see MinkUNet's names
        if isinstance(layer, SparseConvTranspose3d):
            theirs = library.SparseInverseConv3d(c_in, c_out, size, bias=False, indice_key=f"down{8 - level}")
        elif layer.stride[0] == 2:
            theirs = library.SparseConv3d(c_in, c_out, size, 2, bias=False, indice_key=f"down{level}")
        else:
            key = f"same{level if level < 5 else 8 - level}"
            theirs = library.SubMConv3d(c_in, c_out, size, bias=False, indice_key=key)
        theirs.weight.data.copy_(layouts.to_spconv(layer.weight.data, layer.kernel_size))
        layers[layer] = theirs

    def start(features, coordinates):
        moved, (batches, *shape) = _moved(coordinates)
        tensor = library.SparseConvTensor(features, moved, shape, batches)
        return _Theirs(tensor, lambda t: t.features, lambda t, f: t.replace_feature(f))

    half = torch.float16 if network.final.weight.is_cuda else None  # autocast never reaches its layers on the CPU
    return _replaced(network, layers, start, half=half)


def minkowski(network: MinkUNet) -> Step:
    """MinkowskiEngine 0.5. Its coordinates are ours, its transposed layers find the level by themselves; float32 only.

    Source: `MinkowskiConvolution.py` and `MinkowskiSparseTensor.py` of NVIDIA/MinkowskiEngine; for float32 its issues
    392 and 486.
    """
    library = importlib.import_module("MinkowskiEngine")
    layers = {}
    for _, layer in _convolutions(network):
        up = isinstance(layer, SparseConvTranspose3d)
        kind = library.MinkowskiConvolutionTranspose if up else library.MinkowskiConvolution
        c_in, c_out = layer.weight.shape[1:]
        theirs = kind(c_in, c_out, kernel_size=layer.kernel_size[0], stride=layer.stride[0], dimension=3)
        theirs.kernel.data.copy_(layouts.to_minkowski(layer.weight.data))
        layers[layer] = theirs

    def write(tensor, features):
        where = {"coordinate_map_key": tensor.coordinate_map_key, "coordinate_manager": tensor.coordinate_manager}
        return library.SparseTensor(features, **where)

    def start(features, coordinates):
        return _Theirs(library.SparseTensor(features, coordinates.int().contiguous()), lambda t: t.F, write)

    return _replaced(network, layers, start, half=torch.float32)


def torchsparse(network: MinkUNet) -> Step:
    """torchsparse 2.1 (TorchSparse++) in its default mode. On CUDA only; no bfloat16.

    Coordinates are batch first, unlike those of 2.0. Negative ones are dropped unless a slower mode is set, and so is
    what lies beyond the range, which strided layers divide, as spconv's do. Source: mit-han-lab/torchsparse,
    `nn/functional/conv/conv.py` and `backend/others/sparsemapping_cuda.cu`, its release notes; for bfloat16 issue 276.
    """
    library, theirs_nn, utils = (importlib.import_module(f"torchsparse{name}") for name in ("", ".nn", ".nn.utils"))
    layers = {}
    for _, layer in _convolutions(network):
        c_in, c_out = layer.weight.shape[1:]
        up = isinstance(layer, SparseConvTranspose3d)
        theirs = theirs_nn.Conv3d(c_in, c_out, layer.kernel_size[0], layer.stride[0], transposed=up)
        theirs.kernel.data.copy_(layouts.to_torchsparse(layer.weight.data, layer.kernel_size))
        layers[layer] = theirs

    def start(features, coordinates):
        moved, extents = _moved(coordinates)
        tensor = library.SparseTensor(features, moved, spatial_range=tuple(extents))
        return _Theirs(tensor, lambda t: t.feats, lambda t, f: utils.fapply(t, lambda _: f))

    return _replaced(network, layers, start, half=torch.float16)


def flex_gemm(network: MinkUNet) -> Step:
    """FlexGEMM's submanifold layers. Strided and transposed layers, and each level's coordinates, stay OURS.

    It documents no other layer: a development branch has a strided one whose backward returns too few gradients, and
    a transposed one exists in a fork alone. On CUDA only; no negative coordinates; its kernels take the features'
    type, whichever it is. Source: JeffreyXiang/FlexGEMM, `flex_gemm/ops/spconv/submanifold_conv3d.py` and
    `sparse_conv3d.py`.
    """
    convolve = importlib.import_module("flex_gemm.ops.spconv").sparse_submanifold_conv3d
    layers = {
        layer: nn.Parameter(layouts.to_spconv(layer.weight.data, layer.kernel_size))
        for _, layer in _convolutions(network)
        if layer.stride == (1, 1, 1)
    }
    extents, levels = [], {}  # of the cloud in hand; (stride, kernel size) -> coordinates there, their neighbours

    def start(features, coordinates):
        levels.clear()
        moved, extents[:] = _moved(coordinates)
        return SparseTensor(features, moved)

    def through(weight, x):
        level = x.stride[0], weight.shape[1]
        if level not in levels:
            coordinates = x.coordinates.clone()
            coordinates[:, 1:] //= x.stride[0]
            levels[level] = coordinates, None
        coordinates, neighbours = levels[level]
        kind = x.features.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.features.dtype
        features, weight = x.features.to(dtype), weight.to(dtype)
        shape = torch.Size((extents[0], features.shape[1], *(e // x.stride[0] for e in extents[1:])))
        bias = features.new_zeros(len(weight))  # its backward reads the bias without asking whether there is one
        out, neighbours = convolve(features, coordinates, shape, weight, bias, neighbours)
        levels[level] = coordinates, neighbours
        return x.with_features(out)

    return _replaced(network, layers, start, through)


PEERS = {  # name -> its package, what builds its step, the devices it runs on
    "spconv": ("spconv", partial(spconv, package="spconv"), ("cpu", "cuda")),
    "spconv_triton": ("spconv_triton", partial(spconv, package="spconv_triton"), ("cuda",)),
    "MinkowskiEngine": ("MinkowskiEngine", minkowski, ("cpu", "cuda")),
    "torchsparse": ("torchsparse", torchsparse, ("cuda",)),
    "flex_gemm (strided layers: ours)": ("flex_gemm", flex_gemm, ("cuda",)),
}


def available(device: torch.device) -> dict[str, Callable[[MinkUNet], Step]]:
    """What builds the step of every peer that is installed here and runs on `device`, by name.

    A package is imported when its step is built, not before: one that does not load raises there.
    """
    return {
        name: build
        for name, (package, build, kinds) in PEERS.items()
        if device.type in kinds and importlib.util.find_spec(package)
    }


def leaves(network: MinkUNet, step: Step | None = None) -> list[nn.Parameter]:
    """The network's parameters, and a library's own. zero_grad knows only the former, and looks for them each time."""
    theirs = getattr(step, "layers", {}).values()
    own = (t.parameters() if isinstance(t, nn.Module) else (t,) for t in theirs)
    return [*network.parameters(), *itertools.chain(*own)]


def forget_gradients(parameters: list[nn.Parameter]) -> None:
    """So that the next step writes gradients, and adds to none."""
    for parameter in parameters:
        parameter.grad = None


def check(network: MinkUNet, peer: Step, features: torch.Tensor, coordinates: torch.Tensor) -> float:
    """Relative difference of a peer's output from ours, both in train mode."""
    with torch.no_grad():
        ours, theirs = network(SparseTensor(features, coordinates)).features, peer(features, coordinates)
    return float((ours - theirs).norm() / ours.norm())
