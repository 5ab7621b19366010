"""Batch norm over voxels, with an optional residual and ReLU, in one pass over the features; and all gradients.

PyTorch's own kernel adds up a channel's rows one by one in float32 on the CPU: its variance is off by 1e-5 of itself at
20,000 voxels and by 1e-4 at 300,000. Here blocks of rows are summed about their own mean, and blocks are combined in
float64: off by less than 1e-6, and the same from run to run. The rows of several processes are combined just so.
"""

from functools import partial

import torch
import torch.distributed as dist
import triton
import triton.language as tl

from triton_kernels.backend import UNSPECIALIZED, uses_triton
from triton_kernels.convolution import library

VALUES = 2**18  # a block's, in torch: few enough for the processor's cache, enough to outweigh the calls
ROWS_TRITON = 32


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    relu: bool = False,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)`, statistics in float32 at least.

    Args:
        x: `[V, C]`; V > 0 in one process at least.
        weight, bias: `[C]`.
        eps: added to the variance.
        residual: `[V, C]` or None.
        relu: whether negative values become 0.
        group: processes whose rows count as one batch, each of which must make the same calls. As in
            nn.SyncBatchNorm the gradients of weight and bias stay those of the process's own rows.

    Returns the features `[V, C]` in the type of `x`, and the mean and the unbiased variance `[C]` (without gradient).
    """
    return _Normalize.apply(x, weight, bias, residual, eps, relu, group)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, eps, relu, group):
        x = x.contiguous()
        residual = None if residual is None else residual.to(x.dtype).contiguous()
        # operators take no process group
        way = torch.ops.triton_kernels.normalize if group is None else partial(_normalize, group=group)
        y, mean, variance, unbiased = way(x, weight, bias, residual, eps, relu)
        # Where ReLU was active shows in y; without a residual it is cheaper to compute again than to keep.
        ctx.save_for_backward(x, mean, variance, weight, bias, y if relu and residual is not None else None)
        ctx.eps, ctx.relu, ctx.group = eps, relu, group
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    def backward(ctx, grad, _mean, _unbiased):
        x, mean, variance, weight, bias, y = ctx.saved_tensors
        with_residual = ctx.needs_input_grad[3]
        way = torch.ops.triton_kernels.normalize_backward
        if ctx.group is not None:
            way = partial(_normalize_backward, group=ctx.group)
        grad_x, grad_weight, grad_bias, grad_residual = way(
            grad.contiguous(), x, mean, variance, weight, bias, y, ctx.eps, ctx.relu, with_residual
        )
        return grad_x, grad_weight, grad_bias, grad_residual if with_residual else None, None, None, None


library.define(
    "normalize(Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps, bool relu)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "normalize_backward(Tensor grad, Tensor x, Tensor mean, Tensor variance, Tensor weight, Tensor bias, Tensor? y,"
    " float eps, bool relu, bool with_residual) -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(library, "normalize", "CompositeExplicitAutograd")
def _normalize(x, weight, bias, residual, eps, relu, group=None):
    on_triton, voxels = uses_triton(x.device, x.dtype), len(x)
    mean, squares = (_statistics_triton if on_triton else _statistics)(x)
    free = max(voxels - 1, 1)
    if group is not None:
        mean, squares, voxels = _across(mean, squares, voxels, group)
        free = (voxels - 1).clamp(min=1)
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, variance, unbiased = (s.to(wide) for s in (mean, squares / voxels, squares / free))
    scale, shift = _affine(mean, variance, weight, bias, eps)
    out = torch.empty_like(x)
    if on_triton:
        grid, columns = _grid(x)
        _apply_kernel[grid](
            x, scale, shift, x if residual is None else residual, out, len(x), x.shape[1],
            RESIDUAL=residual is not None, RELU=relu, ROWS=ROWS_TRITON, COLUMNS=columns,
        )  # fmt: skip
        return out, mean, variance, unbiased
    for values, other, y in _blocks(x, x if residual is None else residual, out):
        block = torch.addcmul(shift, values.to(wide), scale)
        if residual is not None:
            block += other
        if relu:
            torch.ops.aten.threshold.out(block, 0, 0, out=y)  # clamp_min writes no halves
        else:
            y.copy_(block)
    return out, mean, variance, unbiased


@torch.library.impl(library, "normalize_backward", "CompositeExplicitAutograd")
def _normalize_backward(grad, x, mean, variance, weight, bias, y, eps, relu, with_residual, group=None):
    wide, voxels = mean.dtype, len(x)
    scale, shift = _affine(mean, variance, weight, bias, eps)
    reciprocal = torch.rsqrt(variance + eps)
    grad_x, grad_residual = torch.empty_like(x), torch.empty_like(x if with_residual else x[:0])
    on_triton = uses_triton(x.device, x.dtype)
    if on_triton:
        grid, columns = _grid(x)
        switches = {"RELU": relu, "FROM_OUTPUT": y is not None, "ROWS": ROWS_TRITON, "COLUMNS": columns}
        active = x if y is None else y
        sums = torch.empty((2, grid[0], x.shape[1]), dtype=wide, device=x.device)
        _sums_kernel[grid](
            grad, x, active, mean, reciprocal, scale, shift, sums[0], sums[1], voxels, x.shape[1], **switches
        )
        own = sums.double().sum(1)
    else:
        kept = grad_residual if with_residual else grad_x if relu else grad  # the gradient behind the ReLU, exactly
        blocks = _blocks(grad, x, x if y is None else y, kept)
        sums = x.new_empty(len(blocks), 2, x.shape[1], dtype=wide)
        for (g, values, active, masked), (of_grad, of_product) in zip(blocks, sums, strict=True):
            values = values.to(wide)
            if relu:
                active = torch.addcmul(shift, values, scale) if y is None else active
                torch.ops.aten.threshold_backward.grad_input(g, active, 0, grad_input=masked)
            elif with_residual:
                masked.copy_(g)
            g = masked.to(wide)
            torch.sum(g, 0, out=of_grad)
            torch.sum((values - mean).mul_(g), 0, out=of_product)
        own = sums.double().sum(0)
        own[1] *= reciprocal
    total, count = (own, voxels) if group is None else _summed(own, voxels, group)
    # d unit / d x takes the mean, and the component along `unit`, out of the gradient
    mean_grad, mean_unit = (total / -count).to(wide)
    along = reciprocal * mean_unit
    constant = mean_grad - mean * along
    if on_triton:
        _grad_kernel[grid](
            grad, x, active, scale, shift, along, constant, grad_x, grad_residual, voxels, x.shape[1],
            RESIDUAL=with_residual, **switches,
        )  # fmt: skip
    else:
        along, constant = along * scale, constant * scale
        for values, g, result in _blocks(x, kept, grad_x):
            torch.addcmul(torch.addcmul(constant, values.to(wide), along), g.to(wide), scale, out=result)
    return grad_x, own[1].to(weight.dtype), own[0].to(bias.dtype), grad_residual


@torch.library.register_fake("triton_kernels::normalize", lib=library)
def _(x, weight, bias, residual, eps, relu):
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), *(x.new_empty(x.shape[1], dtype=wide) for _ in range(3))


@torch.library.register_fake("triton_kernels::normalize_backward", lib=library)
def _(grad, x, mean, variance, weight, bias, y, eps, relu, with_residual):
    residual = torch.empty_like(x if with_residual else x[:0])
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), residual


def _affine(mean, variance, weight, bias, eps):
    """(scale, shift) `[C]` with x * scale + shift normalised."""
    scale = torch.rsqrt(variance + eps) * weight
    return scale, bias - mean * scale


def _combine(means, squares, counts, voxels):
    """(mean, squared deviations) `[C]` in float64 of all rows, from those `[B, C]` of parts of `counts [B, 1]` rows."""
    mean = (means.double() * counts).sum(0) / voxels
    return mean, (squares.double() + counts * (means - mean) ** 2).sum(0)


def _combine_blocks(means, squares, rows, voxels):
    """`_combine` of blocks of `rows`, the last with what is left."""
    counts = torch.full((len(means), 1), rows, dtype=torch.float64, device=means.device)
    counts[-1:] = voxels - rows * (len(means) - 1)
    return _combine(means, squares, counts, max(voxels, 1))


def _across(mean, squares, voxels, group):
    """(mean, squared deviations, rows) of the rows of all processes, from those of each one's own."""
    mine = torch.cat((mean, squares, mean.new_full((1,), voxels)))
    every = mine.new_empty(group.size(), len(mine))
    dist.all_gather(list(every), mine, group=group)
    means, squares, counts = every.split((len(mean), len(mean), 1), 1)
    total = counts.sum().clamp(min=1)
    return *_combine(means, squares, counts, total), total


def _summed(sums, voxels, group):
    """Sums `[2, C]` and numbers of rows, added over all processes."""
    total = torch.cat((sums.flatten(), sums.new_full((1,), voxels)))
    dist.all_reduce(total, group=group)
    return total[:-1].view_as(sums), total[-1]


def _rows(x):
    """Rows a block, in torch."""
    return max(VALUES // x.shape[1], 1)


def _blocks(*features):
    """The blocks of several `[V, C]`, side by side."""
    return list(zip(*(f.split(_rows(f)) for f in features), strict=True)) if len(features[0]) else []


def _statistics(x):
    wide, blocks = torch.promote_types(x.dtype, torch.float32), _blocks(x)
    means, squares = x.new_empty(2, len(blocks), x.shape[1], dtype=wide)
    for (block,), mean, square in zip(blocks, means, squares, strict=True):
        torch.mean(block, 0, dtype=wide, out=mean)
        torch.sum((block - mean).square_(), 0, out=square)  # centred before it is squared: no cancellation
    return _combine_blocks(means, squares, _rows(x), len(x))


def _grid(x):
    columns = min(triton.next_power_of_2(x.shape[1]), 128)
    return (triton.cdiv(len(x), ROWS_TRITON), triton.cdiv(x.shape[1], columns)), columns


def _statistics_triton(x):
    grid, columns = _grid(x)
    means, squares = torch.empty((2, grid[0], x.shape[1]), dtype=torch.float32, device=x.device)
    _statistics_kernel[grid](x, means, squares, len(x), x.shape[1], ROWS=ROWS_TRITON, COLUMNS=columns)
    return _combine_blocks(means, squares, ROWS_TRITON, len(x))


@triton.jit
def _block(n, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(element offsets, mask, columns, column mask) of this program's block."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < n)[:, None] & (column < CHANNELS)[None, :]
    return row[:, None] * CHANNELS + column[None, :], mask, column, column < CHANNELS


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _statistics_kernel(x, means, squares, n, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at, mask, column, valid = _block(n, CHANNELS, ROWS, COLUMNS)
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    block = tl.program_id(0)
    mean = tl.sum(values, 0) / tl.minimum(n - block * ROWS, ROWS).to(tl.float32)
    centred = tl.where(mask, values - mean[None, :], 0.0)
    tl.store(means + block * CHANNELS + column, mean, mask=valid)
    tl.store(squares + block * CHANNELS + column, tl.sum(centred * centred, 0), mask=valid)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _apply_kernel(
    x, scale, shift, residual, out, n, CHANNELS: tl.constexpr,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    at, mask, column, valid = _block(n, CHANNELS, ROWS, COLUMNS)
    a = tl.load(scale + column, mask=valid, other=0.0)[None, :]
    b = tl.load(shift + column, mask=valid, other=0.0)[None, :]
    y = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * a + b
    if RESIDUAL:
        y += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _activated(grad, x, active, at, mask, a, b, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr):
    """(gradient behind the ReLU, x) of a block."""
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        if FROM_OUTPUT:
            positive = tl.load(active + at, mask=mask, other=0.0) > 0
        else:
            positive = values * a + b > 0
        g = tl.where(positive, g, 0.0)
    return g, values


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _sums_kernel(
    grad, x, active, mean, reciprocal, scale, shift, sums, sums_unit, n, CHANNELS: tl.constexpr,
    RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    at, mask, column, valid = _block(n, CHANNELS, ROWS, COLUMNS)
    a = tl.load(scale + column, mask=valid, other=0.0)[None, :]
    b = tl.load(shift + column, mask=valid, other=0.0)[None, :]
    g, values = _activated(grad, x, active, at, mask, a, b, RELU, FROM_OUTPUT)
    centre = tl.load(mean + column, mask=valid, other=0.0)[None, :]
    unit = (values - centre) * tl.load(reciprocal + column, mask=valid, other=0.0)[None, :]
    block = tl.program_id(0)
    tl.store(sums + block * CHANNELS + column, tl.sum(g, 0), mask=valid)
    tl.store(sums_unit + block * CHANNELS + column, tl.sum(g * unit, 0), mask=valid)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _grad_kernel(
    grad, x, active, scale, shift, along, constant, grad_x, grad_residual, n, CHANNELS: tl.constexpr,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    at, mask, column, valid = _block(n, CHANNELS, ROWS, COLUMNS)
    a = tl.load(scale + column, mask=valid, other=0.0)[None, :]
    b = tl.load(shift + column, mask=valid, other=0.0)[None, :]
    g, values = _activated(grad, x, active, at, mask, a, b, RELU, FROM_OUTPUT)
    if RESIDUAL:
        tl.store(grad_residual + at, g.to(grad_residual.dtype.element_ty), mask=mask)
    along = tl.load(along + column, mask=valid, other=0.0)[None, :]
    constant = tl.load(constant + column, mask=valid, other=0.0)[None, :]
    tl.store(grad_x + at, ((g + values * along + constant) * a).to(grad_x.dtype.element_ty), mask=mask)
