"""The student as the stages use it: points -> voxels -> network, and the file that remembers how it was built."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from data.disk import InputError, read_tensors, write_tensors
from data.frame import Batch
from slidr.config import Architecture, Positive, VoxelSize
from slidr.minkunet import STRIDES, UNREAD, MinkUNet
from triton_kernels import CartesianGrid, CylindricalGrid, SparseTensor, Voxels, voxelize

HEAD = "final."  # the last layer: the shared feature space in pretraining, the classes downstream


SPEC_KEYS = ("architecture", "width", "grid", "voxel_size")  # the settings that make a StudentSpec


class StudentSpec(BaseModel):
    """What must be equal for weights to fit: the architecture, its input and its voxels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    width: Positive
    grid: Literal["cylindrical", "cartesian"]
    voxel_size: VoxelSize
    input_feature: str = "intensity"


class _Task(BaseModel):
    """What a segmentation network was trained for (see slidr.downstream.finish)."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    dataset: str
    pct: float


class _Checkpoint(BaseModel):
    """The form of a model.pt: nobody who reads one need doubt what is in it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    stage: str
    spec: StudentSpec
    classes: list[str]
    task: _Task | None = None
    weights: dict[str, torch.Tensor]


class Student(nn.Module):
    """The lidar network with its voxel grid (paper, section 3.1).

    Args:
        spec: architecture and voxels.
        out_channels: channels of the last layer.
        bn_momentum: batch-norm momentum outside the residual blocks.
        normalize: L2-normalise the output of each voxel (pretraining).
        bn_momentum_blocks: batch-norm momentum inside them.

    Raises InputError if there is too little memory for it.
    """

    def __init__(
        self,
        spec: StudentSpec,
        out_channels: int,
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
        """The batch as voxels: features are those of each voxel's first point, as in the published code."""
        try:
            v = voxelize(batch.points[:, :3], batch.batch_index, self.grid, STRIDES)
        except ValueError as error:
            raise InputError(f"the frames {', '.join(batch.ids)} do not fit the voxel grid: {error}") from error
        return SparseTensor(batch.features[v.first], v), v

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Voxels]:
        """(output `[V, out_channels]` of every voxel, the voxels with `.first [V]` and `.inverse [N]`)."""
        x, v = self.voxels(batch)
        return self.network(x).features, v

    def backbone(self, batch: Batch) -> tuple[SparseTensor, Voxels]:
        """(features of every voxel before the last layer, the voxels)."""
        x, v = self.voxels(batch)
        return self.network.backbone(x), v


def save_student(
    path: Path, student: Student, stage: str, classes: tuple[str, ...] = (), task: dict | None = None
) -> None:
    """Write `model.pt`: weights, spec, the stage that made it and (segmentation) the class names and the task."""
    content = {
        "format": 1,
        "stage": stage,
        "spec": student.spec.model_dump(mode="json"),
        "classes": list(classes),
        "task": task,
        "weights": _weights(student),
    }
    write_tensors(path, content)


def _weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in student.network.state_dict().items() if not name.endswith(UNREAD)}


def read_checkpoint(path: Path) -> dict:
    """The content of a `model.pt` written by `save_student`; InputError if it is something else."""
    content = read_tensors(path)
    try:
        _Checkpoint(**content).weights[f"{HEAD}weight"].shape[2]  # [1, Cin, Cout]
    except (KeyError, IndexError, ValidationError) as error:
        raise InputError(
            f"{path} is no model.pt of this program; name one, or bring a published one in with `run.py convert`."
        ) from error
    return content


def load_weights(student: Student, content: dict, path: Path, with_head: bool) -> None:
    """Put the checkpoint's weights into the student, with or without its last layer.

    Raises InputError if the specs differ (both values named) or a key is missing or misshapen (named).
    """
    mine, theirs = student.spec.model_dump(), StudentSpec(**content["spec"]).model_dump()
    for name, value in mine.items():
        if value != theirs[name]:
            remedy = f"drop --{name} or choose" if name in SPEC_KEYS else "choose"
            raise InputError(
                f"{path} was trained with {name} {theirs[name]}, this run has {value}; {remedy} other --weights."
            )
    weights, own = content["weights"], _weights(student)
    if not with_head:
        weights = {k: v for k, v in weights.items() if not k.startswith(HEAD)}
        own = {k: v for k, v in own.items() if not k.startswith(HEAD)}
    for name in sorted(set(own) | set(weights)):
        if name not in weights or name not in own:
            raise InputError(f"{path}: the key `{name}` is {'missing' if name in own else 'not known'}; is it damaged?")
        if own[name].shape != weights[name].shape:
            raise InputError(
                f"{path}: `{name}` has shape {list(weights[name].shape)}, this network needs {list(own[name].shape)}."
            )
    student.network.load_state_dict(weights, strict=with_head)


def newest_checkpoint(output: Path, *stages: str) -> Path | None:
    """The newest model.pt under `output/<stage>/*/`, or None."""
    found = [path for stage in stages for path in (output / stage).glob("*/model.pt")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
