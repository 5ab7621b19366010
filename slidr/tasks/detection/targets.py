"""Boxes as maps of a bird's-eye grid, and the loss between maps (CenterPoint, Yin et al., CVPR 2021).

The way back, from maps to boxes, is part of the network (`slidr.networks.detector.decode`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data.boxes import Boxes
from slidr.networks.detector import DetectorSpec

MIN_OVERLAP = 0.1  # of a box that is moved by the radius of its Gaussian with itself
MIN_RADIUS, MAX_RADIUS = 2, 64  # cells; the second keeps a mistaken annotation of a kilometre from filling the memory
REGRESSION_WEIGHT = 0.25


@dataclass
class Targets:
    """What the maps of a batch of B frames should be, for the K boxes whose centre is in the grid.

    heat: `[B, classes, X, Y]`, 1 at the centres, Gaussians around them, of overlapping ones the larger.
    frame, label, cell: `[K]`, `[K]` and `[K, 2]` int64, of each box.
    regression: `[K, REGRESSION]` what the maps should say in its cell. Of boxes that share a cell each is asked for.
    """

    heat: torch.Tensor
    frame: torch.Tensor
    label: torch.Tensor
    cell: torch.Tensor
    regression: torch.Tensor


def gaussian_radius(size: torch.Tensor) -> torch.Tensor:
    """Radii `[K]` int64 in cells, of boxes whose length and width are `size [K, 2]` cells.

    The smallest of the three of CornerNet (Law and Deng, ECCV 2018), with the published code's denominators: 2, not
    2a, which makes small objects' Gaussians a little wider.
    """
    total, area = size.sum(1), size.prod(1)
    cases = (
        (1.0, total, area * (1 - MIN_OVERLAP) / (1 + MIN_OVERLAP)),
        (4.0, 2 * total, area * (1 - MIN_OVERLAP)),
        (4 * MIN_OVERLAP, -2 * MIN_OVERLAP * total, -area * (1 - MIN_OVERLAP)),
    )
    radii = [(b + (b**2 - 4 * a * c).sqrt()) / 2 for a, b, c in cases]
    return torch.stack(radii).amin(0).long().clamp(MIN_RADIUS, MAX_RADIUS)


def encode(boxes: Boxes, frame: torch.Tensor, frames: int, classes: int, spec: DetectorSpec) -> Targets:
    """The targets of a batch.

    Args:
        boxes: of all frames, as tensors; those whose centre is outside the grid are left out.
        frame: `[K]` int64, the frame of each.
        frames, classes: how many there are.
        spec: the grid.
    """
    rows, columns = spec.shape
    places = spec.places(boxes.centre[:, :2])
    kept = spec.inside(places).nonzero()[:, 0]
    boxes, frame, places = boxes.select(kept), frame[kept], places[kept]
    cell = places.long()
    radius = gaussian_radius(boxes.size[:, :2] / spec.cell)
    largest = int(radius.max()) if len(radius) else 0
    reach = torch.arange(-largest, largest + 1, device=cell.device)
    offsets = torch.cartesian_prod(reach, reach).view(-1, 2)  # [P, 2]
    around = cell[:, None] + offsets
    sigma = ((2 * radius + 1) / 6)[:, None]
    value = torch.exp(-offsets.square().sum(1) / (2 * sigma**2))  # [K, P]
    there = ((around >= 0) & (around < around.new_tensor((rows, columns)))).all(2)
    there &= (offsets.abs() <= radius[:, None, None]).all(2)
    index = ((frame * classes + boxes.label)[:, None] * rows + around[..., 0]) * columns + around[..., 1]
    heat = boxes.centre.new_zeros(frames * classes * rows * columns)
    heat = heat.scatter_reduce(0, index[there], value[there], "amax").view(frames, classes, rows, columns)
    regression = torch.cat(
        (
            places - cell,
            boxes.centre[:, 2:],
            boxes.size.log(),
            torch.stack((boxes.yaw.sin(), boxes.yaw.cos()), 1),
        ),
        1,
    )
    return Targets(heat, frame, boxes.label, cell, regression)


def focal_loss(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Penalty-reduced focal loss of heat maps (CornerNet, equation 1: alpha 2, beta 4), divided by the boxes.

    Args:
        logits: `[B, classes, X, Y]`.
        targets: of the same maps.
    """
    at_centres = logits[targets.frame, targets.label, targets.cell[:, 0], targets.cell[:, 1]]
    near = F.logsigmoid(at_centres) * torch.sigmoid(-at_centres) ** 2
    far = F.logsigmoid(-logits) * logits.sigmoid() ** 2 * (1 - targets.heat) ** 4
    return -(near.sum() + far.sum()) / max(len(at_centres), 1)


def regression_loss(maps: torch.Tensor, targets: Targets) -> torch.Tensor:
    """L1 distance of each box's eight numbers to those of `maps [B, 8, X, Y]` in its cell: the mean, 0 of no boxes."""
    found = maps[targets.frame, :, targets.cell[:, 0], targets.cell[:, 1]]
    return (found - targets.regression).abs().sum() / max(len(found), 1)
