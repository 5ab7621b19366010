"""The same network, the same weights, on other engines: what the engine's benchmarks compare with.

Each peer runs our MinkUNet with its own convolutions in place of ours, and torch's batch norm and ReLU as its users
write them. A peer that is not installed is left out.
"""

import contextlib
import importlib.util
from collections.abc import Callable
from unittest import mock

import torch

from slidr.minkunet import MinkUNet
from triton_kernels import BatchNorm, SparseConv3d, SparseConvTranspose3d, SparseTensor, layouts, modules

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # features [V, 1], coordinates [V, 4] -> output [V, 64]


def plain_norm(norm: BatchNorm, x, residual=None, relu: bool = False):
    """Batch norm, sum and ReLU one after the other."""
    features = norm.bn(x.features)
    features = features if residual is None else features + residual.features
    return x.with_features(torch.relu(features) if relu else features)


def gather_multiply_scatter(x, weight, kernel_map, transposed=False):
    """What one writes first: one gather, product and scatter per kernel offset, gradients by autograd."""
    ks, rows_in, rows_out = kernel_map.listed().T
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


class _SpconvTensor:
    """What MinkUNet expects of a sparse tensor, around spconv's."""

    def __init__(self, tensor, cache, stride: int):
        self.tensor, self.cache, self.stride, self.features = tensor, cache, stride, tensor.features

    def with_features(self, features: torch.Tensor) -> "_SpconvTensor":
        return _SpconvTensor(self.tensor.replace_feature(features), self.cache, self.stride)


def spconv(network: MinkUNet, package: str) -> Step:
    """spconv 2 or a package with its interface. Its kernels never see negative coordinates: the cloud is moved."""
    library = importlib.import_module(f"{package}.pytorch")
    if not torch.cuda.is_available():  # its backward asks for a CUDA stream on the CPU too, and does nothing with it
        importlib.import_module(f"{package}.pytorch.ops").get_current_stream = lambda: 0
    layers = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, SparseConv3d | SparseConvTranspose3d) or len(layer.weight) == 1:
            continue
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
        layers[layer] = theirs.to(layer.weight.device, layer.weight.dtype)

    def forward(layer, x: _SpconvTensor) -> _SpconvTensor:
        if layer not in layers:
            bias = 0 if layer.bias is None else layer.bias
            return x.with_features(x.features @ layer.weight[0] + bias)
        return _SpconvTensor(layers[layer](x.tensor), x.cache, x.stride)

    def step(features, coordinates):
        moved = coordinates.clone()
        moved[:, 1:] -= moved[:, 1:].amin(0) // 16 * 16
        shape = [int(c) // 16 * 16 + 16 for c in moved[:, 1:].amax(0)]
        tensor = library.SparseConvTensor(features, moved.contiguous(), shape, int(moved[:, 0].max()) + 1)
        with contextlib.ExitStack() as patches:
            for kind in (SparseConv3d, SparseConvTranspose3d):
                patches.enter_context(mock.patch.object(kind, "forward", forward))
            patches.enter_context(mock.patch.object(BatchNorm, "forward", plain_norm))
            return network(_SpconvTensor(tensor, object(), 1)).features

    step.parameters = [p for layer in layers.values() for p in layer.parameters()]
    return step


def available(network: MinkUNet, device: torch.device) -> dict[str, Step]:
    """Every peer that imports here and runs on `device`, by name."""
    found = {}
    for package in ("spconv", "spconv_triton"):
        if importlib.util.find_spec(package) and (package == "spconv" or device.type == "cuda"):
            found[package] = spconv(network, package)
    return found


def check(network: MinkUNet, peer: Step, features: torch.Tensor, coordinates: torch.Tensor) -> float:
    """Relative difference of a peer's output from ours, both in train mode."""
    with torch.no_grad():
        ours, theirs = network(SparseTensor(features, coordinates)).features, peer(features, coordinates)
    return float((ours - theirs).norm() / ours.norm())
