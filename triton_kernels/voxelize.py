"""Voxelization of points, and the map from points to voxels."""

import itertools
import math
from dataclasses import dataclass, field

import torch

from triton_kernels.coordinates import Triple, check_span, triple
from triton_kernels.hash_table import HashTable, SortedKeys, distinct


@dataclass(frozen=True)
class CylindricalGrid:
    """Voxels in (rho, phi, z), edges in metres, degrees, metres; ValueError unless above 0. phi does not wrap."""

    rho: float = 0.1
    phi_degrees: float = 1.0
    z: float = 0.1

    def __post_init__(self):
        _check_edges(self.rho, self.phi_degrees, self.z)

    def bins(self, points: torch.Tensor) -> torch.Tensor:
        """Continuous grid coordinates `[N, 3]` of points `[N, 3]` in metres, in the points' own precision."""
        x, y, z = points.unbind(1)
        rho = torch.sqrt(x**2 + y**2) / self.rho
        phi = torch.atan2(y, x) * 180 / math.pi / self.phi_degrees
        return torch.stack((rho, phi, z / self.z), 1)


@dataclass(frozen=True)
class CartesianGrid:
    """Voxels in (x, y, z), one edge in metres or one per axis; ValueError unless above 0."""

    edge: float | tuple[float, float, float] = 0.1

    def __post_init__(self):
        _check_edges(*(self.edge if isinstance(self.edge, tuple) else (self.edge,)))

    def bins(self, points: torch.Tensor) -> torch.Tensor:
        """Continuous grid coordinates `[N, 3]` of points `[N, 3]` in metres, in the points' own precision."""
        edges = self.edge if isinstance(self.edge, tuple) else (self.edge,)
        return points / torch.cat([points.new_full((1,), edge) for edge in edges])  # without a copy, which would wait


def _check_edges(*edges: float) -> None:
    if len(edges) not in (1, 3) or not all(0 < edge < math.inf for edge in edges):
        raise ValueError(f"voxel edges must be one number or three, all above 0; they are {edges}.")


@dataclass
class Voxels:
    """The voxels of a batch, in the order of their first points."""

    coordinates: torch.Tensor  # [V, 4] int32: batch and three axes
    first: torch.Tensor  # [V] int64: row of each voxel's first point in input order
    inverse: torch.Tensor  # [N] int64: voxel of each point
    levels: dict[Triple, torch.Tensor]  # tensor stride -> coordinates [V', 4] int32
    tables: dict[Triple, HashTable | SortedKeys] = field(default_factory=dict)  # tensor stride -> rows of `levels`

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean `[V, C]` of `values [N, C]` over each voxel's points, summed in float32 at least, in a fixed order.

        Raises ValueError unless there is one row per point.
        """
        if values.ndim != 2 or len(values) != len(self.inverse):
            raise ValueError(
                f"values must be [{len(self.inverse)}, C], one row a point; they are {list(values.shape)}."
            )
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        order = torch.argsort(self.inverse, stable=True)
        counts = torch.bincount(self.inverse, minlength=len(self.first))
        return torch.segment_reduce(wide[order], "mean", lengths=counts, unsafe=True).to(values.dtype)


def voxelize(
    points: torch.Tensor, batch_index: torch.Tensor, grid: CylindricalGrid | CartesianGrid, strides: tuple = (1,)
) -> Voxels:
    """Quantize points to the voxels of a grid, rounding down.

    Args:
        points: `[N, 3]` in metres; further columns are ignored.
        batch_index: `[N]` integers, the batch item of each point.
        grid: the shape of the voxels.
        strides: the network's tensor strides, each an int or one per axis. Their coordinates are made here too, so that
            the host waits for the device once a batch, and not again in every strided layer.

    Raises ValueError for shapes that do not match, and for points that are not finite or out of the key's range.
    """
    if points.ndim != 2 or points.shape[1] < 3 or batch_index.shape != points.shape[:1]:
        raise ValueError(
            f"voxelize takes points [N, 3] and a batch index [N]; they are {list(points.shape)} and "
            f"{list(batch_index.shape)}."
        )
    levels = tuple(dict.fromkeys(triple(stride, "strides") for stride in (1, *strides)))
    bins = torch.floor(grid.bins(points[:, :3]))
    cells = torch.cat((batch_index[:, None].to(bins.dtype), bins), 1)
    if len(cells) == 0:
        nothing, rows = cells.int(), batch_index.long()
        return Voxels(nothing, rows, rows, dict.fromkeys(levels, nothing))
    found = distinct(cells.int(), levels)
    # All that the host needs, in one transfer: the span, which is finite only if every point is, and the sizes.
    facts = torch.cat([f.double() for f in (*torch.aminmax(cells, dim=0), found.ends)]).tolist()
    if not all(map(math.isfinite, facts)):
        bad = int(torch.isfinite(cells).all(1).logical_not().sum())
        raise ValueError(f"{bad} of {len(points)} points are not finite; remove them first.")
    low, high, ends = ([int(f) for f in part] for part in (facts[:4], facts[4:8], facts[8:]))
    for level in levels:
        check_span([low[0], *(c // s * s for c, s in zip(low[1:], level, strict=True))], high)
    rows, first, inverse, tables = found.collect(ends)
    sizes = [end - begin for begin, end in itertools.pairwise((0, *ends))]
    coordinates = dict(zip(levels, rows.split(sizes), strict=True))
    return Voxels(coordinates[levels[0]], first, inverse, coordinates, dict(zip(levels, tables, strict=True)))
