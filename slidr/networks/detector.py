"""A detector on the pretrained lidar network: features of points -> bird's-eye grid -> heat maps and boxes.

The head is that of CenterPoint (Yin et al., CVPR 2021): an object is the peak of its class's heat map, and the cell of
the peak says where in it the centre is, how high, how large and which way the object faces. Everything is plain torch.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from data.boxes import Boxes, Detections
from data.frame import Batch
from slidr.config import Area, Channels, Count, Positive, Share, cells_of
from slidr.networks.student import Student, of_points

REGRESSION = 8  # numbers a cell: offset x, y in cells; z in m; log of length, width, height in m; sine, cosine of yaw
LONGEST = 5.0  # logarithm of 148 m: a size that an untrained network gives must stay finite
RARE = -math.log(99.0)  # heat begins at 0.01 everywhere (RetinaNet, section 4.1), or the empty cells flood the loss


class DetectorSpec(BaseModel):
    """What decides a detector beside its student: the grid, its width, which peaks are boxes. Named as the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: Area
    cell: Positive
    bev_channels: Channels
    min_score: Share
    most_boxes: Count

    @model_validator(mode="after")
    def _of_a_size(self) -> "DetectorSpec":
        cells_of(self.area, self.cell)
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along x and y."""
        return cells_of(self.area, self.cell)

    def places(self, xy: torch.Tensor) -> torch.Tensor:
        """Metres `[N, 2]` -> cells and parts of them `[N, 2]`, from the corner of the smallest x and y."""
        return (xy - xy.new_tensor(self.area[:2])) / self.cell

    def inside(self, places: torch.Tensor) -> torch.Tensor:
        """Which of `places [N, 2]` (`places`) are in the grid: a mask `[N]`; NaN is not."""
        return ((places >= 0) & (places < places.new_tensor(self.shape))).all(1)


def pool_to_grid(features: torch.Tensor, frame: torch.Tensor, cells: torch.Tensor, shape: tuple) -> torch.Tensor:
    """The largest value of each channel among the points of a cell.

    Args:
        features: `[N, C]`, none below 0.
        frame: `[N]` int64, the frame of each point.
        cells: `[N, 2]` int64, its cell along x and y.
        shape: (frames, cells along x, cells along y).

    Returns:
        `[frames, C, X, Y]`; 0 where a cell has no point.
    """
    frames, rows, columns = shape
    index = (frame * rows + cells[:, 0]) * columns + cells[:, 1]
    grid = features.new_zeros(frames * rows * columns, features.shape[1])
    grid = grid.scatter_reduce(0, index[:, None].expand_as(features), features, "amax")
    return grid.view(frames, rows, columns, -1).permute(0, 3, 1, 2)


def _norm(channels: int) -> nn.GroupNorm:
    """Group norm: its figures are those of one frame, whatever the batch and the number of processes.

    torch's batch norm over several processes runs on GPUs alone, and batches of detection are small.
    """
    return nn.GroupNorm(math.gcd(8, channels), channels)


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; where the shape changes it is a mean of cells and a 1x1 convolution.

    One of 1x1 and stride 2, instead of the mean, sees a quarter of the cells, and its backward pass crashes in torch
    2.13 on CPUs where channels come last, as they do in a grid of points.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
            _norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            _norm(channels),
        )
        self.shortcut = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(in_channels, channels, 1, bias=False), _norm(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class BirdsEyeHead(nn.Module):
    """Features of points -> heat maps and regressions of a bird's-eye grid.

    Args:
        channels: of a point's features.
        classes: of objects.
        spec: the grid and its width C.
    """

    def __init__(self, channels: int, classes: int, spec: DetectorSpec):
        super().__init__()
        self.spec, self.classes, width = spec, classes, spec.bev_channels
        self.point = nn.Sequential(nn.Linear(channels + 3, width), nn.LayerNorm(width), nn.ReLU())
        self.fine = nn.Sequential(_Block(width, width), _Block(width, width))
        self.coarse = nn.Sequential(_Block(width, 2 * width, 2), _Block(2 * width, 2 * width))
        self.joined = nn.Sequential(nn.Conv2d(3 * width, width, 3, 1, 1, bias=False), _norm(width), nn.ReLU())
        self.last = nn.Conv2d(width, classes + REGRESSION, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.constant_(self.last.bias[:classes], RARE)

    def grid(self, features: torch.Tensor, points: torch.Tensor, frame: torch.Tensor, frames: int) -> torch.Tensor:
        """The grid `[frames, C, X, Y]` of points with features `[N, channels]`, those outside left out.

        A point adds to its features its height and its place in its cell: pooling forgets where in it a point was.
        Points are pooled, not voxels, since the cells of a cylindrical grid are none of this one's.
        """
        places = self.spec.places(points[:, :2])
        kept = self.spec.inside(places).nonzero()[:, 0]
        places, height = places[kept], points[kept, 2:3]
        cells = places.floor()
        about = torch.cat((places - cells, height), 1).to(features.dtype)
        values = self.point(torch.cat((features[kept], about), 1))
        return pool_to_grid(values, frame[kept], cells.long(), (frames, *self.spec.shape))

    def forward(
        self, features: torch.Tensor, points: torch.Tensor, frame: torch.Tensor, frames: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps of the grid.

        Args:
            features: `[N, channels]`.
            points: `[N, 3 or more]`, metres.
            frame: `[N]` int64, the frame of each point.
            frames: how many there are.

        Returns:
            logits `[frames, classes, X, Y]` of the heat maps, and regressions `[frames, REGRESSION, X, Y]`.
        """
        fine = self.fine(self.grid(features, points, frame, frames))
        coarse = nn.functional.interpolate(self.coarse(fine), fine.shape[-2:])  # nearest; sides may be odd
        maps = self.last(self.joined(torch.cat((fine, coarse), 1)))
        return maps[:, : self.classes], maps[:, self.classes :]


def decode(heat: torch.Tensor, regression: torch.Tensor, spec: DetectorSpec) -> list[Detections]:
    """The boxes of each frame, best first: cells whose heat is the largest of the 3 x 3 around them.

    At most `spec.most_boxes` of all classes, none below `spec.min_score`. The maximum over neighbours stands in for
    non-maximum suppression.

    Args:
        heat: probabilities `[B, classes, X, Y]`.
        regression: `[B, REGRESSION, X, Y]`.
        spec: the grid.
    """
    frames, _, rows, columns = heat.shape
    peaks = heat * (heat == nn.functional.max_pool2d(heat, 3, stride=1, padding=1))
    flat = peaks.flatten(1)
    score, index = flat.topk(min(spec.most_boxes, flat.shape[1]))
    label, cell = index // (rows * columns), index % (rows * columns)
    values = regression.flatten(2).gather(2, cell[:, None].expand(-1, REGRESSION, -1)).movedim(1, 2)  # [B, M, 8]
    place = torch.stack((cell // columns, cell % columns), 2) + values[..., :2]
    centre = torch.cat((place * spec.cell + place.new_tensor(spec.area[:2]), values[..., 2:3]), 2)
    size = values[..., 3:6].clamp(-LONGEST, LONGEST).exp()
    yaw = torch.atan2(values[..., 6], values[..., 7])
    found = []
    for i in range(frames):
        kept = (score[i] >= spec.min_score) & (score[i] > 0)
        parts = (part[i][kept].cpu().numpy() for part in (centre, size, yaw, label))
        found.append(Detections(Boxes.of(*parts), score[i][kept].cpu().numpy()))
    return found


class Detector(nn.Module):
    """A student without a last layer, and the head.

    Args:
        student: made with `out_channels=None`.
        classes: names of the objects.
        spec: of the head.
    """

    def __init__(self, student: Student, classes: tuple[str, ...], spec: DetectorSpec):
        super().__init__()
        self.student, self.classes, self.spec = student, classes, spec
        self.head = BirdsEyeHead(student.network.channels, len(classes), spec)

    def describe(self) -> str:
        """Student and head in a few words."""
        size, (rows, columns) = sum(p.numel() for p in self.head.parameters()), self.spec.shape
        head = f"head for {len(self.classes)} classes, {size:,} parameters, {rows} x {columns} cells"
        return f"{self.student.describe()}; {head} of {self.spec.cell:g} m"

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Heat logits `[B, classes, X, Y]` and regressions `[B, REGRESSION, X, Y]` of a batch of B frames."""
        x, voxels = self.student.backbone(batch)
        features = of_points(x.features, voxels.inverse, 0)  # a point without a voxel is NaN, hence in no cell
        return self.head(features, batch.points, batch.batch_index, len(batch.ids))

    @torch.no_grad()
    def detect(self, batch: Batch) -> list[Detections]:
        """What is found in each frame of a batch on this network's device, the best first; leaves it in eval mode."""
        heat, regression = self.eval()(batch)
        return decode(heat.float().sigmoid(), regression.float(), self.spec)
