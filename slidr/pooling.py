"""Mean of features by superpixel: torch-scatter where it is installed, torch's own index_add elsewhere, equal results."""

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
    """Superpixel maps `[I, h, w]` (ids per image, any number) -> one row number per pixel, unique over images, and their count.

    Rows run from image to image and, inside an image, up to its own largest id: no fixed stride, nothing bleeds over.
    """
    if superpixels.numel() == 0:
        return superpixels.long(), 0
    sizes = superpixels.amax((1, 2)) + 1
    starts = torch.cumsum(sizes, 0) - sizes
    return superpixels.long() + starts[:, None, None], int(sizes.sum())
