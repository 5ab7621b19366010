"""SLIC (Achanta et al., TPAMI 2012) in torch: whole batches at once, on any device.

Settings mean what they mean in scikit-image; the maps are others (benchmarks/superpixels.py says how far), because:
- centres are means over every (sigma / 1.5)-th row and column, for the blurred image has no finer detail;
- a small region joins the neighbour that it meets furthest from its first pixel, there the one met last by flood fill;
- regions of more than three cells are not cut; the blur continues the image with its last pixels, and does not mirror.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 10
REACH = 2  # cells: how far from its centre, along each axis, a superpixel may extend
ACROSS = 2 * REACH + 1
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))


def slic(image: Tensor, segments: int, compactness: float, sigma: float) -> Tensor:
    """Superpixel ids `[H, W]` (or `[B, H, W]`) int32 of an image `[H, W, 3]` (or `[B, H, W, 3]`) uint8, on its device.

    Ids of each image count from 0 without gaps, in the order of their first pixels. Every superpixel is connected by
    edges and at least half a grid cell large, except that the one with the first pixel may be smaller.

    Args:
        segments: superpixels asked for; they start on a grid of about that many square cells.
        compactness: weight of distance (a cell's side counts 1) against CIELAB colour.
        sigma: of the Gaussian blur beforehand, in pixels.
    """
    batch = image if image.ndim == 4 else image[None]
    height, width = batch.shape[1:3]
    side = max(1, round(math.sqrt(height * width / segments)))
    colours = _blurred(_lab(batch), sigma) / compactness
    ids, centres = _assigned(colours, side, every=max(1, int(sigma / 1.5)))
    ids = _connected(ids, least=int(0.5 * height * width / centres)).int()
    return ids if image.ndim == 4 else ids[0]


def _lab(image: Tensor) -> Tensor:
    """CIELAB `[B, 3, H, W]` float32 of sRGB `[B, H, W, 3]` uint8 whose values are first stretched to 0..1."""
    rgb = image.movedim(-1, 1).contiguous().float()
    low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
    rgb = (rgb - low) / (high - low).clamp(min=1)
    rgb = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = torch.tensor(RGB_TO_XYZ, device=image.device)
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz / to_xyz.sum(1, keepdim=True), rgb)  # as shares of white
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _blurred(planes: Tensor, sigma: float) -> Tensor:
    """Planes `[B, C, H, W]` after a Gaussian blur up to 4 sigma away; conv2d takes five times as long on a CPU."""
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)] if reach else [1.0]
    for dim, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        wide, planes = F.pad(planes, pad, mode="replicate"), torch.zeros_like(planes)
        for i, weight in enumerate(weights):
            planes.add_(wide.narrow(dim, i, planes.shape[dim]), alpha=weight / sum(weights))
    return planes


def _assigned(colours: Tensor, side: int, every: int) -> tuple[Tensor, int]:
    """The number `[B, H, W]` int64 of the centre that each pixel ends at, and how many centres an image has."""
    (batch, _, height, width), device = colours.shape, colours.device
    rows, columns = -(-height // side), -(-width // side)
    y, x = (torch.arange(n, device=device) / side for n in (height, width))
    places = torch.stack([y[:, None].expand(height, width), x.expand(height, width), torch.ones_like(colours[0, 0])])
    pixels = torch.cat([colours, places.expand(batch, -1, -1, -1)], 1)
    pixels = F.pad(pixels, (0, columns * side - width, 0, rows * side - height))  # by zeros: they count for nothing
    pixels = pixels.view(batch, 6, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).flatten(0, 2).contiguous()
    sample = pixels[..., ::every, ::every].contiguous()  # [B * cells, 6, side / every, side / every]

    # one centre a cell, in its middle, but none where that lies beyond the image
    y, x = (torch.arange(n, device=device) * side + side // 2 for n in (rows, columns))
    beyond = ((y >= height) & (y >= side))[:, None] | ((x >= width) & (x >= side))
    centres = torch.zeros(batch, rows, columns, 5, device=device)  # of no colour: the first step looks at places only
    centres[..., 3], centres[..., 4] = y.clamp(max=height - 1)[:, None] / side, x.clamp(max=width - 1) / side
    for _ in range(ITERATIONS - 1):
        sums = [  # by cell and centre; `eq_` leaves 1 where a centre is the nearest, 0 elsewhere
            part.flatten(2) @ d.eq_(d.amin(1, keepdim=True)).mT for part, d in _distances(sample, centres, beyond)
        ]
        sums = torch.cat(sums).view(batch, rows * columns, -1).mT  # [B, 6 * 25, cells]
        total = F.fold(sums, (rows, columns), ACROSS, padding=REACH).movedim(1, -1)
        centres = torch.where(total[..., 5:] > 0, total[..., :5] / total[..., 5:], centres)

    nearest = torch.cat([d.min(1).indices for _, d in _distances(pixels, centres, beyond)])
    own = torch.arange(rows * columns, device=device).repeat(batch)[:, None]
    ids = own + (nearest // ACROSS - REACH) * columns + nearest % ACROSS - REACH
    ids = ids.view(batch, rows, columns, side, side).transpose(2, 3).reshape(batch, rows * side, columns * side)
    return ids[:, :height, :width], int((~beyond).sum())


def _distances(pixels: Tensor, centres: Tensor, beyond: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of `pixels [B * cells, 6, h, w]`, and squared distances `[n, 25, h * w]` of theirs to the centres around.

    They lack the pixel's own |f|^2, alike for all; centres out of reach are very far, absent ones infinitely.
    """

    def around(values: Tensor, outside: float) -> Tensor:  # [B, rows, columns, n] -> [B * cells, 25, n]
        values = F.pad(values, (0, 0, *4 * (REACH,)), value=outside).unfold(1, ACROSS, 1).unfold(2, ACROSS, 1)
        return values.flatten(4).flatten(0, 2).mT

    terms = around(torch.cat([-2 * centres, centres.square().sum(-1, keepdim=True)], -1), 0.0)
    places = around(centres[..., 3:].masked_fill(beyond[..., None], torch.inf), torch.inf)
    step = len(pixels) if pixels.is_cuda else centres.shape[2]  # a row of cells fits a CPU's cache
    for part, term, place in zip(pixels.split(step), terms.split(step), places.split(step), strict=True):
        d = (term @ part.flatten(2)).unflatten(2, part.shape[2:])
        y, x = (part[:, 3, None, :, 0] - place[..., :1]).abs(), (part[:, 4, None, 0] - place[..., 1:]).abs()
        d += torch.where(y > REACH, 1e30 * y, 0)[..., None]
        d += torch.where(x > REACH, 1e30 * x, 0)[..., None, :]
        yield part, d.flatten(2)


def _connected(ids: Tensor, least: int) -> Tensor:
    """Ids `[B, H, W]` of which each is one region of at least `least` pixels, numbered from 0 in each image."""
    begins = F.pad(ids[..., 1:] != ids[..., :-1], (1, 0), value=True)
    run = begins.flatten().cumsum(0).view_as(ids) - 1  # stretches of equal ids in a row: far fewer than pixels
    runs = torch.arange(int(run[-1, -1, -1]) + 1, device=ids.device)
    differ = ids[:, 1:] != ids[:, :-1]
    touch = ~differ & (begins[:, 1:] | begins[:, :-1])  # once for each two runs of equal ids
    above, below = run[:, :-1][touch], run[:, 1:][touch]
    region = runs  # of each run: the first run of its region
    while not (a := region[above]).equal(b := region[below]):
        region = _ends(region.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin"))

    size = torch.zeros_like(runs).index_add(0, region, torch.bincount(run.flatten()))
    pixel = torch.arange(ids.numel(), device=ids.device).view_as(ids)
    first = pixel[begins]  # pixel of each run
    up, left = pixel[:, 1:][differ], pixel[..., 1:][begins[..., 1:]]  # with a border above, to the left
    above, before = up - ids.shape[2], left - 1
    here, there = torch.cat([up, above, left, before]), torch.cat([above, up, before, left])
    a, b = region[run.flatten()[here]], region[run.flatten()[there]]
    joins = (size[a] < least) & (b < a)  # every region but an image's first has a neighbour that begins before it
    a, b, way = a[joins], b[joins], torch.stack([here[joins], first[a[joins]]])
    way = (way // ids.shape[2]).diff(dim=0).abs() + (way % ids.shape[2]).diff(dim=0).abs()
    furthest = torch.full_like(runs, -1).scatter_reduce(0, a, way[0] * len(runs) + b, "amax")
    region = _ends(torch.where(furthest < 0, runs, furthest % len(runs)))[region]
    number = (region == runs).cumsum(0)[region][run]
    return number - number[:, :1, :1]


def _ends(target: Tensor) -> Tensor:
    """Where each of `[N]` gets to by following `target` (which never goes round) to the end."""
    while not (further := target[target]).equal(target):
        target = further
    return target
