"""SparseTensor and its layers: thin modules around kernel maps, convolution and batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from triton_kernels import kernel_map as maps
from triton_kernels.backend import kernels, uses_triton
from triton_kernels.convolution import convolve
from triton_kernels.coordinates import check, triple
from triton_kernels.hash_table import HashTable, SortedKeys, distinct
from triton_kernels.normalization import normalize
from triton_kernels.voxelize import Voxels

Size = int | tuple[int, int, int]


class _Cache:
    """Coordinates, tables and kernel maps of one batch, by tensor stride, shared by all layers."""

    def __init__(self):
        self.coordinates: dict[tuple, torch.Tensor] = {}
        self.tables: dict[tuple, HashTable | SortedKeys] = {}
        self.maps: dict[tuple, maps.Pairs | maps.Tiles] = {}

    @torch.compiler.disable  # the number of rows depends on the data
    def kernel_map(self, fine: tuple, coarse: tuple, kernel: tuple, dilation: tuple, dtype: torch.dtype):
        """The Pairs or Tiles between the coordinates at strides `fine` and `coarse`, for features of `dtype`."""
        build, kind = maps.build_pairs, SortedKeys
        if uses_triton(self.coordinates[fine].device, dtype):
            build, kind = kernels("kernel_map").build_tiles, HashTable
        name = (fine, coarse, kernel, dilation, build)
        if name not in self.maps:
            if (fine, kind) not in self.tables:
                self.tables[fine, kind] = kind.of(self.coordinates[fine])
            step, table = tuple(d * s for d, s in zip(dilation, fine, strict=True)), self.tables[fine, kind]
            self.maps[name] = build(self.coordinates[fine], self.coordinates[coarse], kernel, step, table)
        return self.maps[name]

    @torch.compiler.disable
    def level(self, stride: tuple, make: Callable[[], torch.Tensor]) -> None:
        """Make the coordinates at `stride` unless the cache has them."""
        if stride not in self.coordinates:
            self.coordinates[stride] = make()


class SparseTensor:
    """Features on voxels.

    Args:
        features: `[V, C]`.
        coordinates: `[V, 4]` integers (batch, three axes), all different, multiples of the stride; or the result of
            `voxelize`, which needs no checks and includes the coordinates of coarser strides.
        stride: tensor stride, one int or one per axis.

    Raises TypeError if coordinates are not integers, ValueError if shapes disagree or coordinates are out of range, not
    multiples of the stride, or not all different.
    """

    def __init__(self, features: torch.Tensor, coordinates: torch.Tensor | Voxels, stride: Size = 1):
        self.stride = triple(stride, "stride")
        self.features = features
        self.cache = _Cache()
        if isinstance(coordinates, Voxels):
            self.cache.coordinates |= coordinates.levels
            self.cache.tables |= {(stride, type(table)): table for stride, table in coordinates.tables.items()}
            _check_features(features, self.coordinates)
            return
        check(coordinates)
        _check_features(features, coordinates)
        if self.stride != (1, 1, 1) and (coordinates[:, 1:] % coordinates.new_tensor(self.stride)).any():
            raise ValueError(f"coordinates must be multiples of the stride {self.stride}.")
        coordinates = self.cache.coordinates[self.stride] = coordinates.int().contiguous()
        found, count = distinct(coordinates), len(coordinates)
        if sum(found.ends.tolist()) != count:
            raise ValueError("a coordinate occurs twice; voxelize the points first.")
        (table,) = found.collect([count])[-1]
        self.cache.tables[self.stride, type(table)] = table

    @property
    def coordinates(self) -> torch.Tensor:
        """`[V, 4]` int32 (batch, three axes)."""
        return self.cache.coordinates[self.stride]

    def with_features(self, features: torch.Tensor, stride: tuple[int, int, int] | None = None) -> SparseTensor:
        """Other features on the same coordinates, or on the cached ones at `stride`; the cache is shared.

        Raises ValueError unless features are `[V, C]` with one row per coordinate.
        """
        other = object.__new__(SparseTensor)
        other.features, other.stride, other.cache = features, stride or self.stride, self.cache
        _check_features(features, other.coordinates)
        return other

    def to(self, device: torch.device | str) -> SparseTensor:
        """The same tensor on another device, with a new cache."""
        return SparseTensor(self.features.to(device), self.coordinates.to(device), self.stride)

    def __getitem__(self, item: int) -> SparseTensor:
        """The voxels of one batch item, which keep their batch index, with a new cache."""
        mine = self.coordinates[:, 0] == item
        return SparseTensor(self.features[mine], self.coordinates[mine], self.stride)

    def __repr__(self) -> str:
        batches = int(self.coordinates[:, 0].max()) + 1 if len(self.features) else 0
        return (
            f"SparseTensor({len(self.features)} voxels, {self.features.shape[1]} channels, stride {self.stride}, "
            f"{batches} batch items, {self.features.dtype}, {self.features.device})"
        )


def _check_features(features: torch.Tensor, coordinates: torch.Tensor) -> None:
    if features.ndim != 2 or len(features) != len(coordinates):
        raise ValueError(
            f"features must be [V, C] with one row a coordinate; they are {list(features.shape)} "
            f"for {len(coordinates)} coordinates."
        )


class _SparseLayer(nn.Module):
    transposed = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1, dilation: Size = 1,
        bias: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.kernel_size = triple(kernel_size, "kernel_size")
        self.stride = triple(stride, "stride")
        self.dilation = triple(dilation, "dilation")
        volume = math.prod(self.kernel_size)
        bound = 1 / math.sqrt((out_channels if self.transposed else in_channels) * volume)
        self.weight = nn.Parameter(torch.empty(volume, in_channels, out_channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[2]}, kernel {self.kernel_size}, stride {self.stride}"

    def _cast(self, x: SparseTensor) -> torch.Tensor:
        """The features, in autocast's type where it is enabled."""
        if x.features.shape[1] != self.weight.shape[1]:
            raise ValueError(f"this layer takes {self.weight.shape[1]} channels, the input has {x.features.shape[1]}.")
        kind = x.features.device.type
        return x.features.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x.features

    def _biased(self, out: torch.Tensor) -> torch.Tensor:
        return out if self.bias is None else out + self.bias.to(out.dtype)


class SparseConv3d(_SparseLayer):
    """Sparse convolution; stride 1 keeps the input's coordinates (submanifold).

    Args:
        in_channels, out_channels: C and C'.
        kernel_size, stride, dilation: one int or one per axis.
        bias: add a `[C']` bias.

    `weight`: `[K, C, C']`, axis 0 of the kernel varies fastest. Raises ValueError if the input has other channels, or a
    size is not above 0.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[V, C]` -> `[V', C']` at tensor stride x.stride * stride."""
        features = self._cast(x)
        if self.stride == self.kernel_size == (1, 1, 1):
            return x.with_features(self._biased(features @ self.weight.squeeze(0).to(features.dtype)))
        coarse = tuple(a * b for a, b in zip(x.stride, self.stride, strict=True))
        x.cache.level(coarse, lambda: maps.downsample(x.coordinates, coarse))
        kernel_map = x.cache.kernel_map(x.stride, coarse, self.kernel_size, self.dilation, features.dtype)
        return x.with_features(self._biased(convolve(features, self.weight, kernel_map)), coarse)


class SparseConvTranspose3d(_SparseLayer):
    """Transposed sparse convolution, back to the cached coordinates at stride x.stride / stride.

    If there are none, the output lies on the distinct `coarse + offset`. Arguments and errors as for SparseConv3d; also
    raises ValueError if the input's stride is not divisible by the layer's.
    """

    transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size = 2, stride: Size = 2, dilation: Size = 1,
        bias: bool = False,
    ):  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[V', C]` -> `[V, C']` at tensor stride x.stride / stride."""
        features = self._cast(x)
        if any(a % b for a, b in zip(x.stride, self.stride, strict=True)):
            raise ValueError(f"a tensor of stride {x.stride} cannot be upsampled by {self.stride}.")
        fine = tuple(a // b for a, b in zip(x.stride, self.stride, strict=True))
        step = tuple(d * s for d, s in zip(self.dilation, fine, strict=True))
        x.cache.level(fine, lambda: maps.reached(x.coordinates, self.kernel_size, step))
        kernel_map = x.cache.kernel_map(fine, x.stride, self.kernel_size, self.dilation, features.dtype)
        return x.with_features(self._biased(convolve(features, self.weight, kernel_map, transposed=True)), fine)


class BatchNorm(nn.Module):
    """Batch norm over all voxels of the batch, with the semantics and the state of nn.BatchNorm1d.

    `bn` is an ordinary nn.BatchNorm1d. If nn.SyncBatchNorm.convert_sync_batchnorm has replaced it, the batch is that of
    all processes, on CPUs too, and a process may have no voxels at all.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)

    def forward(self, x: SparseTensor, residual: SparseTensor | None = None, relu: bool = False) -> SparseTensor:
        """Normalized features `[V, C]`, plus a residual on the same coordinates, through a ReLU.

        Fewer than two voxels have no variance and use the running statistics. (With several processes the total is not
        known without waiting for the device: the variance of a single voxel is then 0.)
        """
        return x.with_features(self.of_rows(x.features, None if residual is None else residual.features, relu))

    def of_rows(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        """The same of plain rows `[V, C]`."""
        bn = self.bn
        group = (bn.process_group or dist.group.WORLD) if isinstance(bn, nn.SyncBatchNorm) else None
        if not self.training or (group is None and len(x) < 2):
            out = nn.functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
            out = out if residual is None else out + residual
            return torch.relu(out) if relu else out
        running = bn.running_mean, bn.running_var, bn.num_batches_tracked
        return normalize(x, bn.weight, bn.bias, running, bn.momentum, bn.eps, residual, relu, group)


def cat(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """The channels of `a`, then those of `b`. Raises ValueError unless both have the same cache and stride."""
    if a.cache is not b.cache or a.stride != b.stride:
        raise ValueError(f"only tensors of the same coordinates concatenate; these are {a} and {b}.")
    return a.with_features(torch.cat((a.features, b.features), 1))


def to_points(x: SparseTensor, inverse: torch.Tensor) -> torch.Tensor:
    """The features `[N, C]` of points, given the voxel `inverse [N]` of each."""
    if x.features.is_cuda:
        return x.features[inverse]  # its gradient adds in a fixed order; that of index_select uses atomics
    return x.features.index_select(0, inverse)
