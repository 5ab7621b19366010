"""The typed things that flow from disk to the networks: Needs, Frame, CameraView, Pairs, Batch."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.boxes import Boxes
from data.files import InputError
from data.images import image_size, read_image


@dataclass
class CameraView:
    """One camera's picture of a frame."""

    name: str  # sensor channel, e.g. "CAM_FRONT" or "image_2"
    token: str  # unique in its data set; names the superpixel map on disk
    image: np.ndarray  # [H, W, 3]: uint8 as read; float32 in 0..1 once augmented
    superpixels: np.ndarray | None = None  # [H, W] of any integers, any number of ids; below 0 = of none
    file: Path | None = None  # where the image comes from
    size: tuple[int, int] | None = None  # (H, W) that pairs count in; image and map may be shrunk. None = as is

    def __post_init__(self):
        self.size = self.size or self.image.shape[:2]


def read_view(name: str, token: str, file: Path, shrink: int = 1) -> CameraView:
    """The view of an image file, its image at 1 / shrink of its size. Raises InputError if it does not decode."""
    image = read_image(file, shrink)
    return CameraView(name, token, image, file=file, size=image_size(file) if shrink > 1 else None)


@dataclass
class Pairs:
    """Which point is seen at which pixel: four arrays (or tensors) of one length M, all int64."""

    point: np.ndarray | torch.Tensor  # [M] row of the points
    camera: np.ndarray | torch.Tensor  # [M] index of the camera (in a Batch: row of the images)
    row: np.ndarray | torch.Tensor  # [M] pixel row, from the top
    column: np.ndarray | torch.Tensor  # [M] pixel column, from the left

    def __len__(self) -> int:
        return len(self.point)

    def select(self, rows) -> "Pairs":
        """The pairs at `rows` (a mask or indices)."""
        return Pairs(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def empty() -> "Pairs":
        """No pairs at all."""
        return Pairs(*(np.zeros(0, np.int64) for _ in range(4)))

    @staticmethod
    def concatenate(parts: "list[Pairs]") -> "Pairs":
        """All numpy pairs of `parts`, one after another."""
        if not parts:
            return Pairs.empty()
        return Pairs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Pairs)))


@dataclass
class Frame:
    """One lidar scan with what the cameras saw around the same time."""

    id: str  # unique in its data set
    points: np.ndarray  # [N, 4] float32: x, y, z in metres in the lidar frame; intensity as stored; see `measured`
    labels: np.ndarray | None = None  # [N] uint8 train ids, 0 = ignored
    cameras: list[CameraView] = field(default_factory=list)
    pairs: Pairs = field(default_factory=Pairs.empty)
    pose: np.ndarray | None = None  # [4, 4] float64, lidar -> world; None = not asked for
    forward: tuple[float, float] = (1.0, 0.0)  # x, y of the vehicle's heading in the lidar frame
    boxes: Boxes | None = None  # objects to detect; None = not asked for, or the frame has no annotations
    ignore: Boxes | None = None  # what a detection of class `label` may be of without counting; there if boxes are

    def select(self, mask: np.ndarray) -> "Frame":
        """The frame with the points of a `mask [N]`, in the same order, and their labels and pairs."""
        pairs, new_row = self.pairs.select(mask[self.pairs.point]), np.cumsum(mask) - 1
        labels = None if self.labels is None else self.labels[mask]
        return replace(self, points=self.points[mask], labels=labels, pairs=replace(pairs, point=new_row[pairs.point]))


FARTHEST = 1000.0  # metres along an axis; no lidar sees a street from further away
BRIGHTEST = 1e6  # intensities are stored as 0 to 1, 8 or 16 bits


def measured(points: np.ndarray) -> np.ndarray:
    """Points `[N, 4]` float32 as they are used: those that no lidar measures (not finite, too far away) become NaN.

    They keep their rows, to which labels and predictions belong, and get no voxel, hence no prediction. `points` itself
    is given back if there are none.
    """
    if len(points) == 0 or -FARTHEST <= points.min() <= points.max() <= FARTHEST:  # most scans; false for NaN
        return points
    lost = ~(np.abs(points) <= np.array([FARTHEST] * 3 + [BRIGHTEST], np.float32)).all(1)
    return np.where(lost[:, None], np.float32(np.nan), points) if lost.any() else points


@dataclass(frozen=True)
class Needs:
    """Which parts of a frame are read. No other file is opened, and a frame is refused only if one of these is missing.

    cameras: 0, 1 (one of them, drawn at random in training) or "all"; with their point-pixel pairs.
    superpixels: maps of these images, which `data.superpixels` computes where there are none.
    pose: where the scan was taken.
    labels: train ids of the points; None in frames for which the data set has no labels.
    boxes: objects to detect, and those to ignore; None in frames for which the data set has no annotations.
    shrink: images at 1 / shrink of their size (`data.images.read_image`); pairs do not change.
    """

    cameras: Literal[0, 1, "all"] = 0
    superpixels: bool = False
    pose: bool = False
    labels: bool = False
    boxes: bool = False
    shrink: int = 1


@dataclass
class Batch:
    """Several frames as tensors, concatenated."""

    points: torch.Tensor  # [N, 4] float32, metres and intensity as stored
    features: torch.Tensor  # [N, 1] float32, the network's input: intensity * scale + offset (`Reader`)
    batch_index: torch.Tensor  # [N] int64, the frame of each point
    labels: torch.Tensor | None  # [N] int64, 0 = ignored
    images: torch.Tensor | None  # [I, 3, h, w] float32 in 0..1, all cameras of frame 0, then frame 1, ...
    superpixels: torch.Tensor | None  # [I, h, w] int64, ids; below 0 = of none
    pairs: Pairs  # tensors; point = row of `points`, camera = row of `images`
    ids: list[str]
    image_frame: torch.Tensor | None = None  # [I] int64, the frame of each image
    measured: torch.Tensor | None = None  # [M] int64, rows of the points that are not NaN; None = of all
    boxes: Boxes | None = None  # tensors; None = not asked for, or a frame has no annotations
    box_frame: torch.Tensor | None = None  # [K] int64, the frame of each box
    ignore: Boxes | None = None  # as `Frame.ignore`; there if boxes are
    ignore_frame: torch.Tensor | None = None  # [J] int64

    @property
    def counts(self) -> dict[str, int]:
        """How many scans and images there are, for the log's rates."""
        return {"scans": len(self.ids), "images": 0 if self.images is None else len(self.images)}

    def truth(self, frame: int) -> tuple[Boxes, Boxes]:
        """The boxes of one frame, and those to ignore, as arrays."""
        pairs = (self.boxes, self.box_frame), (self.ignore, self.ignore_frame)
        return tuple(boxes.select(of == frame).numpy() for boxes, of in pairs)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in memory from which a GPU copies while it computes (called by torch's DataLoader)."""
        return self._with(torch.Tensor.pin_memory)

    def share_memory_(self) -> "Batch":
        """The same batch in memory that other processes see. Raises RuntimeError if there is too little of it."""
        return self._with(torch.Tensor.share_memory_)

    def _with(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        def moved(value):
            if isinstance(value, (Pairs, Boxes)):
                return type(value)(*(moved(getattr(value, f.name)) for f in fields(value)))
            return move(value) if isinstance(value, torch.Tensor) else value

        return replace(self, **{f.name: moved(getattr(self, f.name)) for f in fields(self)})


def collate(frames: list[Frame], intensity_offset: float = 0.0, intensity_scale: float = 1.0) -> Batch:
    """Concatenate frames into one Batch; images must have one size (data.augment sees to it).

    Frames may have no points, no cameras or no pairs. Labels, and boxes, are kept only if every frame has them.
    Raises InputError if image sizes differ.
    """
    points = torch.from_numpy(np.concatenate([f.points for f in frames]))
    lengths = torch.tensor([len(f.points) for f in frames])
    first_point = np.cumsum([0] + [len(f.points) for f in frames])
    first_camera = np.cumsum([0] + [len(f.cameras) for f in frames])
    views = [view for f in frames for view in f.cameras]
    sizes = {view.image.shape[:2] for view in views}
    if len(sizes) > 1:
        raise InputError(f"the images of one batch have sizes {sorted(sizes)}: set a crop size so that all are equal.")
    labels = None
    if all(f.labels is not None for f in frames):
        labels = torch.from_numpy(np.concatenate([f.labels for f in frames]).astype(np.int64))
    lost = points[:, 0].isnan()
    superpixels = None
    if views and all(view.superpixels is not None for view in views):
        superpixels = torch.from_numpy(np.stack([view.superpixels for view in views]).astype(np.int64))
    pairs = Pairs.concatenate(
        [
            Pairs(f.pairs.point + first_point[i], f.pairs.camera + first_camera[i], f.pairs.row, f.pairs.column)
            for i, f in enumerate(frames)
        ]
    )
    boxes = {}
    if all(f.boxes is not None for f in frames):
        for name, kind in (("box", "boxes"), ("ignore", "ignore")):
            parts = [getattr(f, kind) or Boxes.empty() for f in frames]
            of = torch.repeat_interleave(torch.arange(len(frames)), torch.tensor([len(part) for part in parts]))
            boxes |= {kind: Boxes.concatenate(parts).tensors(), f"{name}_frame": of}
    return Batch(
        points=points,
        features=points[:, 3:4] * intensity_scale + intensity_offset,
        batch_index=torch.repeat_interleave(torch.arange(len(frames)), lengths),
        labels=labels,
        images=torch.stack([_image_tensor(view.image) for view in views]) if views else None,
        image_frame=torch.repeat_interleave(torch.arange(len(frames)), torch.tensor([len(f.cameras) for f in frames])),
        superpixels=superpixels,
        pairs=Pairs(*(torch.from_numpy(np.asarray(getattr(pairs, f.name), np.int64)) for f in fields(Pairs))),
        ids=[f.id for f in frames],
        measured=(~lost).nonzero()[:, 0] if lost.any() else None,
        **boxes,
    )


def _image_tensor(image: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return tensor.float() / 255 if image.dtype == np.uint8 else tensor
