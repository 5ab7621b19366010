"""Features of groups: superpoints and superpixels are means (paper, section 3.2), clouds are maxima."""

import torch
from torch.utils.checkpoint import checkpoint

from data.frame import Pairs

try:
    import torch_scatter
except (ImportError, OSError):  # OSError: built for another torch
    torch_scatter = None

POOLING_BACKEND = (
    f"torch-scatter {torch_scatter.__version__}"
    if torch_scatter
    else "torch's index_add (torch-scatter is not installed)"
)
CHUNK = 2**19  # pixels pooled at a time, as many images as they make (at least one)
EPS = 1e-12  # shortest vector that is normalised, as in torch.nn.functional.normalize


def pool_superpixels(
    point_features: torch.Tensor,
    image_features: torch.Tensor,
    superpixels: torch.Tensor,
    pairs: Pairs,
    frame: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Superpoints and superpixels of a batch (paper, section 3.2), one row for each superpixel that a pair hits.

    A superpoint is the mean over the superpixel's paired points (a point that two cameras see counts in both), a
    superpixel the mean over all its pixels; neither is normalised again. Occupied means: has a pair, by count.

    Args:
        point_features: `[N, C]`, L2-normalised.
        image_features: `[I, C, h, w]` as the head gives them; upsampling and normalisation happen here.
        superpixels: `[I, H, W]` int64 at the images' full resolution: ids from 0 up, gaps allowed; -1 = of none.
        pairs: point = row of point_features, camera = image, row and column of its pixel.
        frame: `[I]` int64, the frame of each image: there an id is one superpixel in all images of a frame, as
            SuperFlow has it (section 3.2); None = in each image another.

    Returns k `[S, C]` and q `[S, C]`, ascending by image (or frame) and id. No id bleeds into the next one's, however
    large.
    """
    pairs = _inside(superpixels, pairs)
    stride, occupied, row = occupied_superpixels(superpixels, pairs, frame)
    k = mean_by_id(point_features[pairs.point], row, len(occupied))
    if frame is None:
        return k, upsampled_means(image_features, superpixels, stride, occupied)
    image, whole = (frame[:, None] == occupied // stride).nonzero(as_tuple=True)  # a part in each image of its frame
    parts = image * stride + occupied[whole] % stride
    means, pixels = upsampled_means(image_features, superpixels, stride, parts), _areas(superpixels, stride, parts)
    sums = means.new_zeros(len(occupied), means.shape[1]).index_add(0, whole, means * pixels[:, None])
    return k, sums / torch.zeros_like(occupied).index_add(0, whole, pixels)[:, None]


def _inside(superpixels: torch.Tensor, pairs: Pairs) -> Pairs:
    """The pairs whose pixel belongs to a superpixel."""
    return pairs.select(superpixels[pairs.camera, pairs.row, pairs.column] >= 0)


def occupied_superpixels(
    superpixels: torch.Tensor, pairs: Pairs, frame: torch.Tensor | None = None
) -> tuple[torch.Tensor | int, torch.Tensor, torch.Tensor]:
    """Superpixels that a pair hits: (stride, those `[S]` ascending, the row of each pair's among them `[M]`).

    The superpixel `id` of image (or frame) `i` is called i * stride + id. Arguments as for `pool_superpixels`; all
    pairs are in superpixels.
    """
    stride = superpixels.max() + 2 if superpixels.numel() else 1  # i * stride - 1, which is none, is no superpixel's
    owner = pairs.camera if frame is None else frame[pairs.camera]
    seen = owner * stride + superpixels[pairs.camera, pairs.row, pairs.column]
    return stride, *torch.unique(seen, return_inverse=True)


def _areas(superpixels: torch.Tensor, stride: torch.Tensor | int, names: torch.Tensor) -> torch.Tensor:
    """Pixels `[S]` of the superpixels `names [S]` of images, ascending."""
    first = torch.arange(len(superpixels), device=names.device)[:, None, None] * stride
    pixels = (superpixels + first).flatten()
    row = torch.searchsorted(names, pixels).clamp_max(max(0, len(names) - 1))
    return torch.bincount(row[names[row] == pixels] if len(names) else row[:0], minlength=len(names))


def coarse_means(
    features: torch.Tensor, superpixels: torch.Tensor, pairs: Pairs, frame: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of the features of each superpixel that a pair hits, at their own resolution (ST-SLidR).

    Args:
        features: `[I, C, h, w]`; a cell belongs to the superpixel at its corner, as nearest resizing has it.
        superpixels, pairs, frame: as for `pool_superpixels`, whose rows these are.

    Returns `[S, C]`; zero for a superpixel that has no cell.
    """
    stride, occupied, _ = occupied_superpixels(superpixels, _inside(superpixels, pairs), frame)
    sides = zip(features.shape[2:], superpixels.shape[1:], strict=True)
    rows, columns = (torch.arange(cells, device=features.device) * pixels // cells for cells, pixels in sides)
    owner = torch.arange(len(features), device=features.device) if frame is None else frame
    cells = (superpixels[:, rows][:, :, columns] + owner[:, None, None] * stride).flatten()
    row = torch.searchsorted(occupied, cells).clamp_max(max(0, len(occupied) - 1))
    wanted = (occupied[row] == cells).nonzero()[:, 0] if len(occupied) else row[:0]
    return mean_by_id(features.permute(0, 2, 3, 1).flatten(0, 2)[wanted], row[wanted], len(occupied))


def pool_pairs(
    point_features: torch.Tensor, image_features: torch.Tensor, size: tuple[int, int], pairs: Pairs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair on its own, as PPKT has it: its point's feature, and that of its pixel after upsampling to `size`.

    Arguments as for `pool_superpixels`. Returns k `[M, C]` and q `[M, C]`, both of unit vectors if the points' are.
    """
    features = _float32(image_features)
    (y, y_next, a), (x, x_next, b) = (
        _between(*sides, features) for sides in zip(features.shape[2:], size, strict=True)
    )
    a, b = a[pairs.row, None], b[pairs.column, None]
    pixels = 0
    for rows, share in ((y, 1 - a), (y_next, a)):
        for columns, part in ((x, 1 - b), (x_next, b)):
            pixels = pixels + share * part * features[pairs.camera, :, rows[pairs.row], columns[pairs.column]]
    return _float32(point_features[pairs.point]), torch.nn.functional.normalize(pixels, dim=1, eps=EPS)


def mean_by_id(values: torch.Tensor, ids: torch.Tensor, n: int) -> torch.Tensor:
    """Mean of the rows of each id, `[n, C]`; zero for an id without rows.

    Args:
        values: `[M, C]`; summed in float32 at least.
        ids: `[M]` int64 in 0..n-1.
        n: number of ids.
    """
    values = _float32(values)
    if torch_scatter is not None:
        return torch_scatter.scatter(values, ids, dim=0, dim_size=n, reduce="mean")
    sums = values.new_zeros(n, values.shape[1]).index_add(0, ids, values)
    return sums / torch.bincount(ids, minlength=n).clamp_min(1)[:, None]


def max_by_cloud(values: torch.Tensor, cloud: torch.Tensor, clouds: int) -> torch.Tensor:
    """Maximum of the rows of each cloud, `[clouds, C]`; -inf for a cloud without rows.

    Args:
        values: `[M, C]`.
        cloud: `[M]` integers in 0..clouds-1.
        clouds: number of clouds.

    Rows that share the maximum share its gradient.
    """
    lowest = values.new_full((clouds, values.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, cloud.long()[:, None].expand_as(values), values, "amax")


def max_of_head(head: torch.nn.Module, rows: torch.Tensor, cloud: torch.Tensor, clouds: int) -> torch.Tensor:
    """`max_by_cloud(head(rows), cloud, clouds)`, with a gradient that costs next to nothing.

    A first pass without a graph finds the row of each maximum; these few rows go through the head once more. Of rows
    that share a maximum the first has its gradient.

    Args:
        head: from `[M, in]` to `[M, C]`, each row by itself (no batch norm).
        rows: `[M, in]`.
        cloud: `[M]` integers in 0..clouds-1.
    """
    if len(rows) == 0:
        return max_by_cloud(head(rows), cloud, clouds)
    with torch.no_grad():
        values = head(rows)
        best = [values.masked_fill(cloud[:, None] != i, -torch.inf).argmax(0) for i in range(clouds)]
    best = torch.stack(best)  # [clouds, C]
    found = head(rows[best.flatten()]).unflatten(0, best.shape).diagonal(dim1=1, dim2=2)
    return torch.where(cloud[best] == torch.arange(clouds, device=cloud.device)[:, None], found, -torch.inf)


def upsampled_means(
    features: torch.Tensor, superpixels: torch.Tensor, stride: torch.Tensor | int, occupied: torch.Tensor
) -> torch.Tensor:
    """Mean by superpixel of bilinearly upsampled (align_corners), L2-normalised features, without storing these.

    Upsampling is linear: pixel p gets u_p = sum over its four cells j of w_pj f_j. So the mean over the n pixels of
    superpixel s is a product of small matrices,

        mean_s = 1/n sum_p u_p / |u_p| = sum_j A_sj f_j   with   A_sj = 1/n sum_p w_pj / |u_p|,

    and |u_p| follows from inner products of neighbouring rows. What is left at full resolution are numbers, not
    vectors, of a few images at a time; the gradient computes them again.

    Args:
        features: `[I, C, h, w]`.
        superpixels: `[I, H, W]` int64 ids, all below `stride`.
        stride: the superpixel `id` of image `i` is called i * stride + id.
        occupied: `[S]` those to pool, ascending.

    Returns `[S, C]`, float32 at least.
    """
    features = _float32(features)
    images = torch.arange(len(features) + 1, device=features.device)
    first = torch.searchsorted(occupied, images * stride)
    ends, means = first.tolist(), []
    step = max(1, CHUNK // max(1, superpixels[:1].numel()))
    for i in range(0, len(features), step):
        j = min(i + step, len(features))
        parts = (
            features[i:j],
            superpixels[i:j] + (images[i:j] * stride)[:, None, None],
            occupied[ends[i] : ends[j]],
            first[i : j + 1] - first[i],
        )
        with torch.autocast(features.device.type, enabled=False):
            means.append(checkpoint(_means, *parts, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(means)


def _means(features: torch.Tensor, names: torch.Tensor, occupied: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """`upsampled_means` of some images; `first [I + 1]` is where the superpixels of each image begin in `occupied`."""
    n, channels, h, w = features.shape
    if len(occupied) == 0:
        return features.sum((2, 3))[:0]
    (y, y_next, a), (x, x_next, b) = (_between(*sides, features) for sides in zip((h, w), names.shape[1:], strict=True))

    # |u_p|, from features upsampled along x alone: inner products of each row with itself and with the next one
    wide = (1 - b) * features[..., x] + b * features[..., x_next]  # [n, C, h, W]
    own, next_ = (wide * wide).sum(1), (wide[:, :, :-1] * wide[:, :, 1:]).sum(1)
    next_ = torch.cat((next_, own[:, -1:]), 1)  # the last row has no next one, and its share is 0
    a = a[:, None]
    length = (1 - a) ** 2 * own[:, y] + 2 * a * (1 - a) * next_[:, y] + a**2 * own[:, y_next]
    weight = length.clamp_min(EPS**2).rsqrt()

    # A, dense: few superpixels an image, few cells
    row = torch.searchsorted(occupied, names).clamp_max(len(occupied) - 1)
    wanted = occupied[row] == names
    weight = weight * wanted / torch.bincount(row[wanted], minlength=len(occupied))[row].clamp_min(1)
    most = int(first.diff().max())
    cell = (most * torch.arange(n, device=row.device)[:, None, None] + (row - first[:-1, None, None])) * wanted * h * w
    matrix = weight.new_zeros(n * most * h * w)
    for rows, share in ((y, 1 - a), (y_next, a)):
        for columns, part in ((x, 1 - b), (x_next, b)):
            there = cell + (rows * w)[:, None] + columns
            matrix = matrix.index_add(0, there.flatten(), (weight * share * part).flatten())
    means = matrix.view(n, most, h * w) @ features.flatten(2).transpose(1, 2)
    return means[torch.arange(most, device=row.device) < first.diff()[:, None]]


def _between(source: int, target: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two of `source` cells around each of `target` pixels, corners on corners, and the second one's share."""
    place = torch.linspace(0, source - 1, target, device=like.device, dtype=like.dtype)
    cell = place.long().clamp_max(max(source - 2, 0))
    return cell, (cell + 1).clamp_max(source - 1), place - cell


def _float32(values: torch.Tensor) -> torch.Tensor:
    """At least: half precision has too few digits for sums over thousands of pixels."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
