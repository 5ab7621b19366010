"""Mean of features by superpixel: by torch-scatter where it is installed, else by torch's own index_add."""

import torch

try:
    import torch_scatter
except (ImportError, OSError):  # OSError: built for another torch
    torch_scatter = None

POOLING_BACKEND = (
    f"torch-scatter {torch_scatter.__version__}"
    if torch_scatter
    else "torch's index_add (torch-scatter is not installed)"
)


def mean_by_id(values: torch.Tensor, ids: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the rows of each id, and how many there were.

    Args:
        values: `[M, C]`; summed in float32 at least.
        ids: `[M]` int64 in 0..n-1.
        n: number of ids.

    Returns `[n, C]` (zero for an id without rows) and `[n]` int64.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    counts = torch.bincount(ids, minlength=n)
    if torch_scatter is not None:
        return torch_scatter.scatter(values, ids, dim=0, dim_size=n, reduce="mean"), counts
    sums = values.new_zeros(n, values.shape[1]).index_add(0, ids, values)
    return sums / counts.clamp_min(1)[:, None], counts


def superpixel_rows(superpixels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Number the superpixels of all images: a row `[I, h, w]` per pixel, ascending by image and id, and their count.

    Maps `[I, h, w]` may hold any ids from 0 up, with gaps: each (image, id) that occurs gets one row, so nothing bleeds
    from image to image (the published code's stride of 150 ids does), and there are never more rows than pixels.
    """
    if superpixels.numel() == 0:
        return superpixels.long(), 0
    image = torch.arange(len(superpixels), device=superpixels.device)[:, None, None]
    distinct, rows = torch.unique(image * (superpixels.max().long() + 1) + superpixels, return_inverse=True)
    return rows, len(distinct)
