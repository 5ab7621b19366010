"""PointNet++ with multi-scale grouping: a network on points instead of voxels (Qi et al., NeurIPS 2017).

The layer widths are those of PointRCNN (Shi et al., CVPR 2019), the usual point network for driving scans. Its three
searches (farthest point sampling, ball query, three nearest neighbours) are plain torch, on any device, for all clouds
of a batch at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from triton_kernels import BatchNorm, to_points

# A level down: points that it keeps, then (radius in metres, neighbours, widths of the layers) of each of its scales
DOWN = (
    (4096, ((0.1, 16, (16, 16, 32)), (0.5, 32, (32, 32, 64)))),
    (1024, ((0.5, 16, (64, 64, 128)), (1.0, 32, (64, 96, 128)))),
    (256, ((1.0, 16, (128, 196, 256)), (2.0, 32, (128, 196, 256)))),
    (64, ((2.0, 16, (256, 256, 512)), (4.0, 32, (256, 384, 512)))),
)
UP = ((128, 128), (256, 256), (512, 512), (512, 512))  # widths of the layers up to all points, to the first level, ...

DISTANCES = {"cpu": 2**18, "cuda": 2**26}  # held at a time by a search: a CPU's cache, 256 MiB of a GPU's memory
EPS = 1e-8  # metres: what a point at distance 0 counts as when it is weighed by its inverse


class PointNet2(nn.Module):
    """Features of every point, from four levels of fewer and fewer points and back.

    Args:
        in_channels: features a point beside its position.

    A level has fewer points than DOWN says if the cloud has. 3,007,632 parameters with one feature a point.
    """

    channels = UP[0][-1]

    def __init__(self, in_channels: int = 1):
        super().__init__()
        self.down, channels = nn.ModuleList(), [in_channels]
        for points, scales in DOWN:
            self.down.append(SetAbstraction(points, scales, channels[-1]))
            channels.append(sum(widths[-1] for _, _, widths in scales))
        self.up, coarse = nn.ModuleList(), channels.pop()
        for widths, skip in zip(reversed(UP), reversed(channels), strict=True):
            self.up.append(shared_layers(coarse + skip, widths))
            coarse = widths[-1]

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Positions `[B, N, 3]` in metres and features `[B, N, C]` of B clouds of N points -> `[B, N, 128]`."""
        levels = [(xyz, features)]
        for level in self.down:
            levels.append(level(*levels[-1]))
        coarse_xyz, coarse = levels.pop()
        for layers, (xyz, skip) in zip(self.up, reversed(levels), strict=True):
            coarse = layers(torch.cat((interpolate(coarse, coarse_xyz, xyz), skip), -1))
            coarse_xyz = xyz
        return coarse


class SetAbstraction(nn.Module):
    """A level down: each of the points that are kept sees its neighbours within several radii.

    Args:
        points: how many are kept.
        scales: (radius, neighbours, widths of the layers) of each.
        in_channels: features a point.
    """

    def __init__(self, points: int, scales: tuple[tuple[float, int, tuple[int, ...]], ...], in_channels: int):
        super().__init__()
        self.points, self.balls = points, [(radius, neighbours) for radius, neighbours, _ in scales]
        self.scales = nn.ModuleList(shared_layers(3 + in_channels, widths) for _, _, widths in scales)

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions `[B, N, 3]` and features `[B, N, C]` -> those of the points that are kept, `[B, M, 3 or C']`."""
        centres = select(xyz, farthest_points(xyz, self.points))
        points, seen = torch.cat((xyz, features), -1), []
        own = torch.cat((centres, features.new_zeros(*centres.shape[:2], features.shape[-1])), -1)[:, :, None]
        for rows, layers in zip(ball_query(xyz, centres, self.balls), self.scales, strict=True):
            seen.append(layers(select(points, rows) - own).max(2).values)
        return centres, torch.cat(seen, -1)


def shared_layers(in_channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Layers that treat every point alike, `[..., in_channels]` -> `[..., widths[-1]]`."""
    pairs = zip((in_channels, *widths), widths, strict=False)
    return nn.Sequential(*(_SharedLayer(*pair) for pair in pairs))


class _SharedLayer(nn.Module):
    """Linear, batch norm over all points, ReLU."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(in_channels, channels, bias=False)
        self.norm = BatchNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm.of_rows(self.linear(x).flatten(0, -2), relu=True).view(*x.shape[:-1], -1)


@dataclass
class _Rows:
    """Rows `[N, C]` where the engine expects the features of voxels."""

    features: torch.Tensor


def select(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of `values [B, N, C]` by cloud: `rows [B, ...]` int64 in 0..N-1 -> `[B, ..., C]`."""
    clouds, points, channels = values.shape
    first = points * torch.arange(clouds, device=rows.device).view(-1, *[1] * (rows.ndim - 1))
    return to_points(_Rows(values.flatten(0, 1)), (rows + first).flatten()).view(*rows.shape, channels)


@torch.no_grad()
def farthest_points(xyz: torch.Tensor, count: int) -> torch.Tensor:
    """Farthest point sampling: each point is the one farthest from those before it; the first is row 0.

    Args:
        xyz: `[B, N, 3]`, N > 0.
        count: points to choose from each cloud.

    Returns rows `[B, min(count, N)]` int64: all of them, in their order, where there are no more than `count`. Of
    equally far points the first is chosen, so that row 0 comes again once a cloud has no further place.
    """
    clouds, points = xyz.shape[:2]
    if points <= count:
        return torch.arange(points, device=xyz.device).repeat(clouds, 1)
    axes = xyz.movedim(2, 0).contiguous()  # [3, B, N]
    distance = xyz.new_full((clouds, points), float("inf"))
    chosen = torch.zeros(count, clouds, dtype=torch.int64, device=xyz.device)
    buffers = torch.empty_like(distance), torch.empty_like(distance)
    for i in range(1, count):
        last = axes.gather(2, chosen[i - 1].expand(3, clouds)[..., None])
        torch.minimum(distance, _squared_distances(axes, last, buffers), out=distance)
        torch.argmax(distance, 1, out=chosen[i])
    return chosen.T.contiguous()


def ball_query(xyz: torch.Tensor, centres: torch.Tensor, balls: list[tuple[float, int]]) -> tuple[torch.Tensor, ...]:
    """The first points, in their order, that lie nearer to each centre than a radius, for several radii.

    Args:
        xyz: `[B, N, 3]`, N > 0.
        centres: `[B, M, 3]`.
        balls: (radius, points to find) of each query.

    Returns rows of xyz `[B, M, points to find]` int64 for each ball. Where there are fewer, the first one is repeated;
    where there is none, row 0.
    """
    points = xyz.shape[1]

    def search(squared: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for radius, count in balls:
            seen = (squared < radius**2).cumsum(-1, dtype=torch.int32)
            wanted = torch.arange(1, count + 1, dtype=torch.int32, device=seen.device)
            rows = torch.searchsorted(seen, wanted.expand(*seen.shape[:-1], count).contiguous())
            rows = torch.where(rows < points, rows, rows[..., :1])
            found.append(rows * (rows < points))
        return found

    return _search(search, centres, xyz)


def three_nearest(xyz: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances `[B, M, 3]` and rows `[B, M, 3]` of the points of xyz `[B, N, 3]` nearest to each centre `[B, M, 3]`.

    Fewer than three where N is smaller.
    """
    count = min(3, xyz.shape[1])
    squared, rows = _search(lambda squared: squared.topk(count, largest=False), centres, xyz)
    return squared.sqrt(), rows


def interpolate(features: torch.Tensor, xyz: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Features `[B, M, C]` at `centres [B, M, 3]`: the mean of the three nearest points', weighed by inverse distance.

    Args:
        features: `[B, N, C]` of the points.
        xyz: `[B, N, 3]` of the points.
    """
    distances, rows = three_nearest(xyz, centres)
    weights = 1 / (distances + EPS)
    weights = weights / weights.sum(-1, keepdim=True)
    return (select(features, rows) * weights[..., None].to(features.dtype)).sum(2)


@torch.no_grad()
def _search(
    search: Callable[[torch.Tensor], Sequence[torch.Tensor]], centres: torch.Tensor, xyz: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What `search` finds in the squared distances `[B, some centres, N]`: tensors `[B, M, ...]` for all centres."""
    clouds, points = xyz.shape[:2]
    at_once = max(1, DISTANCES[xyz.device.type] // (clouds * points))
    a, b = xyz.movedim(2, 0)[:, :, None].contiguous(), centres.movedim(2, 0)[..., None].contiguous()
    found = [search(_squared_distances(a, some)) for some in b.split(at_once, 2)]
    return tuple(torch.cat(parts, 1) for parts in zip(*found, strict=True))


def _squared_distances(
    a: torch.Tensor, b: torch.Tensor, buffers: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
) -> torch.Tensor:
    """Between places whose three axes are in the first dimension. Differences first: exact near and far from 0.

    buffers: where the result is written, and what is needed for it.
    """
    total, other = buffers
    total = torch.sub(a[0], b[0], out=total)
    total.mul_(total)
    for i in (1, 2):
        other = torch.sub(a[i], b[i], out=other)
        total.addcmul_(other, other)
    return total
