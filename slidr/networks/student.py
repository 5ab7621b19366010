"""The lidar network as methods and tasks use it: points -> voxels -> network."""

from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from data.files import InputError
from data.frame import Batch
from slidr.config import Architecture, Grid, VoxelSize, Width
from slidr.networks.minkunet import STRIDES, MinkUNet
from triton_kernels import BatchNorm, CartesianGrid, CylindricalGrid, SparseTensor, Voxels, voxelize


class StudentSpec(BaseModel):
    """What must be equal for weights to fit: the architecture and its voxels. The names are those of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    width: Width
    grid: Grid
    voxel_size: VoxelSize


class Student(nn.Module):
    """The lidar network with its voxel grid (SLidR, section 3.1).

    Args:
        spec: architecture and voxels.
        out_channels: channels of the last layer, which is linear; None = the backbone alone.
        bn_momentum: batch-norm momentum outside the residual blocks.
        normalize: L2-normalise the output of each voxel (pretraining).
        bn_momentum_blocks: batch-norm momentum inside them.

    Raises InputError if there is too little memory for it.
    """

    def __init__(
        self,
        spec: StudentSpec,
        out_channels: int | None,
        bn_momentum: float,
        normalize: bool = False,
        bn_momentum_blocks: float = 0.1,
    ):
        super().__init__()
        self.spec = spec
        a, b, c = spec.voxel_size
        self.grid = CylindricalGrid(a, b, c) if spec.grid == "cylindrical" else CartesianGrid((a, b, c))
        try:
            self.network = MinkUNet(
                out_channels,
                spec.architecture,
                bn_momentum=bn_momentum,
                bn_momentum_blocks=bn_momentum_blocks,
                normalize=normalize,
                width=spec.width,
            )
        except RuntimeError as error:  # how torch says that it cannot have so much memory
            raise InputError(
                f"a {spec.architecture} of width {spec.width:g} and {out_channels} output channels does not fit into "
                "memory; lower --width or choose other --weights."
            ) from error

    def describe(self) -> str:
        """Architecture, size and voxels in a few words."""
        size = sum(p.numel() for p in self.parameters())
        return (
            f"{self.spec.architecture} x {self.spec.width:g}, {size:,} parameters, "
            f"{self.spec.grid} voxels {' x '.join(f'{edge:g}' for edge in self.spec.voxel_size)}"
        )

    def voxels(self, batch: Batch) -> tuple[SparseTensor, Voxels]:
        """The batch as voxels: features are those of each voxel's first point, as in the published code.

        A point that is NaN has none: its `.inverse` is -1 (`of_points`).
        """
        points, frame, rows = batch.points[:, :3], batch.batch_index, batch.measured
        if rows is not None:
            points, frame = points[rows], frame[rows]
        try:
            v = voxelize(points, frame, self.grid, STRIDES)
        except ValueError as error:
            raise InputError(f"the frames {', '.join(batch.ids)} do not fit the voxel grid: {error}") from error
        if rows is not None:
            v = replace(
                v, first=rows[v.first], inverse=torch.full_like(batch.batch_index, -1).index_copy(0, rows, v.inverse)
            )
        return SparseTensor(batch.features[v.first].to(self.network.conv0p1s1.weight.dtype), v), v

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Voxels]:
        """(output `[V, out_channels]` of every voxel, the voxels with `.first [V]` and `.inverse [N]`)."""
        x, v = self.voxels(batch)
        return self.network(x).features, v

    def backbone(self, batch: Batch) -> tuple[SparseTensor, Voxels]:
        """(features of every voxel before the last layer, the voxels)."""
        x, v = self.voxels(batch)
        return self.network.backbone(x), v


def of_points(values: torch.Tensor, inverse: torch.Tensor, missing: float) -> torch.Tensor:
    """Each point's row `[N, ...]` of the voxels' `values [V, ...]`, by `inverse [N]`; `missing` if that is -1."""
    return torch.cat((values, values.new_full((1, *values.shape[1:]), missing)))[inverse]


def make_head(channels: int, out: int, hidden: int | None = None, norm: bool = False) -> nn.Sequential:
    """A head `[N, channels]` -> `[N, out]`: one linear layer, or two with a ReLU between them; `norm` = after a
    batch norm."""
    layers = [RowNorm(channels)] if norm else []
    if hidden is None:
        return nn.Sequential(*layers, nn.Linear(channels, out))
    return nn.Sequential(*layers, nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, out))


class RowNorm(BatchNorm):
    """The engine's batch norm of plain rows `[N, C]`: unlike torch's, one over several processes on CPUs, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized rows."""
        return self.of_rows(x)
