"""Points -> voxels, and the map back."""

import math
from dataclasses import dataclass

import torch

from triton_kernels.coordinates import check, pack


@dataclass(frozen=True)
class CylindricalGrid:
    """Voxels in (rho, phi, z): edges in metres, degrees, metres. The seam at 180 degrees does not wrap."""

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
    """Voxels in (x, y, z): one edge in metres, or one per axis."""

    edge: float | tuple[float, float, float] = 0.1

    def __post_init__(self):
        _check_edges(*(self.edge if isinstance(self.edge, tuple) else (self.edge,)))

    def bins(self, points: torch.Tensor) -> torch.Tensor:
        """Continuous grid coordinates `[N, 3]` of points `[N, 3]` in metres, in the points' own precision."""
        return points / torch.as_tensor(self.edge, dtype=points.dtype, device=points.device)


def _check_edges(*edges: float) -> None:
    if len(edges) not in (1, 3) or not all(0 < edge < math.inf for edge in edges):
        raise ValueError(f"voxel edges must be one number or three, all above 0; they are {edges}.")


@dataclass
class Voxels:
    """The voxels of a batch, in the order of their keys (batch, then the three axes)."""

    coordinates: torch.Tensor  # [V, 4] int32: batch and three axes
    first: torch.Tensor  # [V] int64: row of each voxel's first point in input order
    inverse: torch.Tensor  # [N] int64: voxel of each point


def voxelize(points: torch.Tensor, batch_index: torch.Tensor, grid: CylindricalGrid | CartesianGrid) -> Voxels:
    """Quantize points by floor (supplement, section A).

    Args:
        points: `[N, 3]` metres (further columns are ignored).
        batch_index: `[N]` integers, the batch item of each point.
        grid: the voxels' shape.

    Raises ValueError for shapes that do not fit, and for points that are not finite or outside the key's range.
    """
    if points.ndim != 2 or points.shape[1] < 3 or batch_index.shape != points.shape[:1]:
        raise ValueError(
            f"voxelize takes points [N, 3] and a batch index [N]; they are {list(points.shape)} and "
            f"{list(batch_index.shape)}."
        )
    bins = torch.floor(grid.bins(points[:, :3]))
    bad = int((~torch.isfinite(bins)).any(1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(points)} points are not finite; remove them first.")
    quantized = torch.cat((batch_index.long()[:, None], bins.long()), 1)
    check(quantized)
    keys, rows = torch.sort(pack(quantized), stable=True)  # stable: the first row of a key is its first point
    new = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    new[1:] = keys[1:] != keys[:-1]
    first = rows[new]
    inverse = torch.empty_like(rows)
    inverse[rows] = torch.cumsum(new, 0) - 1
    return Voxels(quantized[first].int(), first, inverse)
