"""Batch norm over voxels, with an optional residual and ReLU, in one pass over the features; and all gradients.

PyTorch's own kernel adds up a channel's rows one by one in float32 on the CPU: its variance is off by 1e-5 of itself at
20,000 voxels and by 1e-4 at 300,000. Here blocks of rows are summed about their own mean, and blocks are combined in
float64: off by less than 1e-6, and the same from run to run. The rows of several processes are combined just so.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl

from triton_kernels.backend import UNSPECIALIZED, cdiv, launch, like, operator, uses_triton

VALUES = 2**18  # a block's, in torch: few enough for the processor's cache, enough to outweigh the calls
ROWS, COLUMNS = 32, 128  # a tile's at most, in Triton
PROGRAMS = 512  # that share the rows of a sum, in Triton: enough to fill a GPU, few enough to add up in one launch


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    momentum: float,
    eps: float,
    residual: torch.Tensor | None = None,
    relu: bool = False,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """`relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)`, statistics in float32 at least.

    Args:
        x: `[V, C]`; V > 0 in one process at least.
        weight, bias: `[C]`.
        running: mean and variance `[C]`, which move by `momentum` towards the batch's mean and unbiased variance, and
            the number of batches `[]`: changed in place.
        momentum: 0 to 1.
        eps: added to the variance.
        residual: `[V, C]` or None.
        relu: whether negative values become 0.
        group: processes whose rows count as one batch, each of which must make the same calls. As in
            nn.SyncBatchNorm the gradients of weight and bias stay those of the process's own rows.

    Returns the features `[V, C]` in the type of `x`.
    """
    return _Normalize.apply(x, weight, bias, residual, *running, momentum, eps, relu, group)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, running_mean, running_variance, batches, momentum, eps, relu, group):
        x = x.contiguous()
        residual = None if residual is None else residual.to(x.dtype).contiguous()
        running, options = (running_mean, running_variance, batches), {} if group is None else {"group": group}
        y, statistics = _normalize(x, weight, bias, residual, *running, momentum, eps, relu, **options)
        # Where ReLU was active shows in y; without a residual it is cheaper to compute again than to keep.
        ctx.save_for_backward(x, statistics, y if relu and residual is not None else None)
        ctx.relu, ctx.options = relu, options
        return y

    @staticmethod
    def backward(ctx, grad):
        (x, statistics, y), with_residual = ctx.saved_tensors, ctx.needs_input_grad[3]
        how = y, ctx.relu, with_residual
        grad_x, grad_residual, sums = _normalize_backward(grad.contiguous(), x, statistics, *how, **ctx.options)
        of_bias, of_weight = sums.unbind()  # autograd itself brings gradients to their parameters' types
        return grad_x, of_weight, of_bias, grad_residual if with_residual else None, *[None] * 7


@operator(
    "normalize(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!) running_mean,"
    " Tensor(b!) running_variance, Tensor(c!) batches, float momentum, float eps, bool relu) -> (Tensor, Tensor)",
    lambda x, *_: (torch.empty_like(x), x.new_empty(4, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))),
)
def _normalize(x, weight, bias, residual, running_mean, running_variance, batches, momentum, eps, relu, group=None):
    """The features, and the batch's mean, 1 / deviation, and scale and shift with x * scale + shift normalised."""
    on_triton, (n, channels) = uses_triton(x.device, x.dtype), x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    statistics, out = x.new_empty(4, channels, dtype=wide), torch.empty_like(x)
    if on_triton:
        programs, share, columns, tile = _layout(n, channels)
        parts = x.new_empty(2, programs, channels, dtype=torch.float64)
        launch(_statistics_kernel, (programs, columns, 1), x, parts, n, share, programs, **tile)
    if on_triton and group is None:
        launch(
            _finish_statistics_kernel, (cdiv(channels, 16), 1, 1), parts, weight, bias, running_mean, running_variance,
            batches, statistics, n, programs, momentum, eps, CHANNELS=channels, COLUMNS=16, PARTS=128,
        )  # fmt: skip
    else:
        sums = parts.sum(1) if on_triton else _statistics(x)
        sums, rows = (sums, n) if group is None else _summed(sums, n, group)
        mean = sums[0] / rows
        variance = (sums[1] / rows - mean**2).clamp(min=0)
        unbiased = variance * rows / (max(n - 1, 1) if group is None else (rows - 1).clamp(min=1))
        for running, seen in ((running_mean, mean), (running_variance, unbiased)):
            running.lerp_(seen.to(running.dtype), momentum)
        batches += 1
        mean, reciprocal = mean.to(wide), torch.rsqrt(variance.to(wide) + eps)
        scale = reciprocal * weight
        torch.stack((mean, reciprocal, scale, bias - mean * scale), out=statistics)
    if on_triton:
        launch(
            _apply_kernel, (cdiv(n, ROWS), columns, 1), x, statistics, x if residual is None else residual, out, n,
            **tile, RESIDUAL=residual is not None, RELU=relu,
        )  # fmt: skip
        return out, statistics
    *_, scale, shift = statistics
    for values, other, y in _blocks(x, x if residual is None else residual, out):
        block = torch.addcmul(shift, values.to(wide), scale)
        if residual is not None:
            block += other
        if relu:
            torch.ops.aten.threshold.out(block, 0, 0, out=y)  # clamp_min writes no halves
        else:
            y.copy_(block)
    return out, statistics


@operator(
    "normalize_backward(Tensor grad, Tensor x, Tensor statistics, Tensor? y, bool relu, bool with_residual)"
    " -> (Tensor, Tensor, Tensor)",
    lambda grad, x, statistics, *rest: (torch.empty_like(x), like(x, rest[-1]), torch.empty_like(statistics[:2])),
)
def _normalize_backward(grad, x, statistics, y, relu, with_residual, group=None):
    """Gradients of x and the residual, and the sums of the gradient and of gradient x unit: of bias and weight."""
    on_triton, (n, channels), wide = uses_triton(x.device, x.dtype), x.shape, statistics.dtype
    grad_x, grad_residual = torch.empty_like(x), like(x, with_residual)
    sums, line = (x.new_empty(2, channels, dtype=wide) for _ in range(2))
    if on_triton:
        programs, share, columns, tile = _layout(n, channels)
        tile |= {"RELU": relu, "FROM_OUTPUT": y is not None}
        active = x if y is None else y
        parts = x.new_empty(2, programs, channels, dtype=torch.float64)
        launch(_sums_kernel, (programs, columns, 1), grad, x, active, statistics, parts, n, share, programs, **tile)
    else:
        kept = grad_residual if with_residual else grad_x if relu else grad  # the gradient behind the ReLU, exactly
        blocks = _blocks(grad, x, x if y is None else y, kept)
        parts = x.new_empty(2, len(blocks), channels, dtype=wide)
        mean, _reciprocal, scale, shift = statistics
        for (g, values, active, masked), of_grad, of_product in zip(blocks, *parts, strict=True):
            values = values.to(wide)
            if relu:
                active = torch.addcmul(shift, values, scale) if y is None else active
                torch.ops.aten.threshold_backward.grad_input(g, active, 0, grad_input=masked)
            elif with_residual:
                masked.copy_(g)
            g = masked.to(wide)
            torch.sum(g, 0, out=of_grad)
            torch.sum((values - mean).mul_(g), 0, out=of_product)
    if on_triton and group is None:
        launch(
            _finish_sums_kernel, (cdiv(channels, 16), 1, 1), parts, statistics, sums, line, n, programs,
            CHANNELS=channels, COLUMNS=16, PARTS=128,
        )  # fmt: skip
    else:
        (mean, reciprocal, *_), own = statistics, parts.double().sum(1)
        own[1] *= reciprocal
        sums.copy_(own)
        total, rows = (own, n) if group is None else _summed(own, n, group)
        # d unit / d x takes the mean, and the component along `unit`, out of the gradient
        mean_grad, mean_unit = (total / -rows).to(wide)
        torch.mul(reciprocal, mean_unit, out=line[0])
        torch.sub(mean_grad, mean * line[0], out=line[1])
    if on_triton:
        launch(
            _grad_kernel, (cdiv(n, ROWS), columns, 1), grad, x, active, statistics, line, grad_x, grad_residual, n,
            **tile, RESIDUAL=with_residual,
        )  # fmt: skip
    else:
        along, constant = line * scale
        for values, g, result in _blocks(x, kept, grad_x):
            torch.addcmul(torch.addcmul(constant, values.to(wide), along), g.to(wide), scale, out=result)
    return grad_x, grad_residual, sums


def _summed(sums, voxels, group):
    """Sums `[2, C]` and numbers of rows, added over all processes."""
    total = torch.cat((sums.flatten(), sums.new_full((1,), voxels)))
    dist.all_reduce(total, group=group)
    return total[:-1].view_as(sums), total[-1].clamp(min=1)


def _blocks(*features):
    """The blocks of several `[V, C]`, side by side."""
    rows = max(VALUES // features[0].shape[1], 1)
    return list(zip(*(f.split(rows) for f in features), strict=True)) if len(features[0]) else []


def _statistics(x):
    """Sums `[2, C]` of x and x^2 in float64."""
    wide, blocks = torch.promote_types(x.dtype, torch.float32), _blocks(x)
    means, squares = x.new_empty(2, len(blocks), x.shape[1], dtype=wide)
    for (block,), mean, square in zip(blocks, means, squares, strict=True):
        torch.mean(block, 0, dtype=wide, out=mean)
        torch.sum((block - mean).square_(), 0, out=square)  # centred before it is squared: no cancellation in float32
    means, counts = means.double(), torch.tensor([[len(block)] for (block,) in blocks], device=x.device).view(-1, 1)
    return torch.stack(((means * counts).sum(0), (squares + means**2 * counts).sum(0)))


def _layout(n: int, channels: int) -> tuple[int, int, int, dict]:
    """(programs that share n rows, rows of each, tiles side by side, constants of a tile)."""
    share, columns = max(cdiv(cdiv(n, ROWS), PROGRAMS), 1) * ROWS, min(1 << (channels - 1).bit_length(), COLUMNS)
    return cdiv(n, share), share, cdiv(channels, columns), {"CHANNELS": channels, "ROWS": ROWS, "COLUMNS": columns}


@triton.jit
def _place(begin, end, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(element offsets, mask, columns, column mask) of a tile from row `begin` on, and this program's columns."""
    row = begin + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < end)[:, None] & (column < CHANNELS)[None, :]
    return row.to(tl.int64)[:, None] * CHANNELS + column[None, :], mask, column, column < CHANNELS


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _statistics_kernel(x, parts, n, share, programs, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of x and x^2 over each program's share of the rows, in float64."""
    begin = tl.program_id(0) * share
    end = tl.minimum(begin + share, n)
    of_x = tl.zeros((COLUMNS,), tl.float64)
    of_square = tl.zeros((COLUMNS,), tl.float64)
    for at in range(begin, end, ROWS):
        place, mask, _column, _valid = _place(at, end, CHANNELS, ROWS, COLUMNS)
        values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(end - at, ROWS).to(tl.float32)
        mean = tl.sum(values, 0) / count
        centred = tl.where(mask, values - mean[None, :], 0.0)  # before it is squared: no cancellation in float32
        weighted = mean.to(tl.float64) * count
        of_x += weighted
        of_square += tl.sum(centred * centred, 0) + weighted * mean
    _store(parts, of_x, of_square, programs, CHANNELS, COLUMNS)


@triton.jit
def _store(parts, first, second, programs, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):
    """Two sums of a program to its place among those of all."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    out = parts + tl.program_id(0) * CHANNELS + column
    tl.store(out, first, mask=column < CHANNELS)
    tl.store(out + programs * CHANNELS, second, mask=column < CHANNELS)


@triton.jit
def _total(parts, programs, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """This program's columns, which of them there are, and their two sums over all programs."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < CHANNELS
    first = tl.zeros((COLUMNS,), tl.float64)
    second = tl.zeros((COLUMNS,), tl.float64)
    for at in range(0, programs, PARTS):
        part = at + tl.arange(0, PARTS)
        mask = (part < programs)[:, None] & valid[None, :]
        place = parts + part[:, None] * CHANNELS + column[None, :]
        first += tl.sum(tl.load(place, mask=mask, other=0.0), 0)
        second += tl.sum(tl.load(place + programs * CHANNELS, mask=mask, other=0.0), 0)
    return column, valid, first, second


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _finish_statistics_kernel(
    parts, weight, bias, running_mean, running_variance, batches, statistics, n, programs, momentum, eps,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """All that is computed a channel, running statistics included."""
    column, valid, of_x, of_square = _total(parts, programs, CHANNELS, COLUMNS, PARTS)
    rows = tl.cast(n, tl.float64)
    exact = of_x / rows
    variance = tl.maximum(of_square / rows - exact * exact, 0.0)
    mean = exact.to(tl.float32)
    reciprocal = tl.rsqrt(variance.to(tl.float32) + eps)
    scale = reciprocal * tl.load(weight + column, mask=valid, other=0.0)
    shift = tl.load(bias + column, mask=valid, other=0.0) - mean * scale
    tl.store(statistics + column, mean, mask=valid)
    tl.store(statistics + CHANNELS + column, reciprocal, mask=valid)
    tl.store(statistics + 2 * CHANNELS + column, scale, mask=valid)
    tl.store(statistics + 3 * CHANNELS + column, shift, mask=valid)
    unbiased = (variance * rows / tl.maximum(rows - 1, 1)).to(tl.float32)
    old = tl.load(running_mean + column, mask=valid, other=0.0)
    tl.store(running_mean + column, old + momentum * (mean - old), mask=valid)
    old = tl.load(running_variance + column, mask=valid, other=0.0)
    tl.store(running_variance + column, old + momentum * (unbiased - old), mask=valid)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _apply_kernel(
    x, statistics, residual, out, n, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    place, mask, column, valid = _place(tl.program_id(0) * ROWS, n, CHANNELS, ROWS, COLUMNS)
    scale, shift = _affine(statistics, column, valid, CHANNELS)
    y = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * scale + shift
    if RESIDUAL:
        y += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _affine(statistics, column, valid, CHANNELS: tl.constexpr):
    """(scale, shift) of the columns, as rows."""
    scale = tl.load(statistics + 2 * CHANNELS + column, mask=valid, other=0.0)
    shift = tl.load(statistics + 3 * CHANNELS + column, mask=valid, other=0.0)
    return scale[None, :], shift[None, :]


@triton.jit
def _activated(grad, x, active, place, mask, scale, shift, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr):
    """(gradient behind the ReLU, x) of a tile."""
    g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        if FROM_OUTPUT:
            positive = tl.load(active + place, mask=mask, other=0.0) > 0
        else:
            positive = values * scale + shift > 0
        g = tl.where(positive, g, 0.0)
    return g, values


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _sums_kernel(
    grad, x, active, statistics, parts, n, share, programs,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient, and of gradient x (x - mean), over each program's share of the rows, in float64."""
    begin = tl.program_id(0) * share
    end = tl.minimum(begin + share, n)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < CHANNELS
    mean = tl.load(statistics + column, mask=valid, other=0.0)[None, :]
    scale, shift = _affine(statistics, column, valid, CHANNELS)
    of_grad = tl.zeros((COLUMNS,), tl.float64)
    of_product = tl.zeros((COLUMNS,), tl.float64)
    for at in range(begin, end, ROWS):
        place, mask, _column, _valid = _place(at, end, CHANNELS, ROWS, COLUMNS)
        g, values = _activated(grad, x, active, place, mask, scale, shift, RELU, FROM_OUTPUT)
        of_grad += tl.sum(g, 0)
        of_product += tl.sum(g * (values - mean), 0)
    _store(parts, of_grad, of_product, programs, CHANNELS, COLUMNS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _finish_sums_kernel(
    parts, statistics, sums, line, n, programs, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr
):
    """Add the programs' sums, and make of them the line whose value at x is taken out of the gradient."""
    column, valid, of_grad, of_product = _total(parts, programs, CHANNELS, COLUMNS, PARTS)
    mean = tl.load(statistics + column, mask=valid, other=0.0)
    reciprocal = tl.load(statistics + CHANNELS + column, mask=valid, other=0.0)
    of_unit = of_product * reciprocal
    tl.store(sums + column, of_grad.to(tl.float32), mask=valid)
    tl.store(sums + CHANNELS + column, of_unit.to(tl.float32), mask=valid)
    rows = tl.cast(n, tl.float64)
    along = -reciprocal * (of_unit / rows).to(tl.float32)
    tl.store(line + column, along, mask=valid)
    tl.store(line + CHANNELS + column, -(of_grad / rows).to(tl.float32) - mean * along, mask=valid)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _grad_kernel(
    grad, x, active, statistics, line, grad_x, grad_residual, n,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    place, mask, column, valid = _place(tl.program_id(0) * ROWS, n, CHANNELS, ROWS, COLUMNS)
    scale, shift = _affine(statistics, column, valid, CHANNELS)
    g, values = _activated(grad, x, active, place, mask, scale, shift, RELU, FROM_OUTPUT)
    if RESIDUAL:
        tl.store(grad_residual + place, g.to(grad_residual.dtype.element_ty), mask=mask)
    along = tl.load(line + column, mask=valid, other=0.0)[None, :]
    constant = tl.load(line + CHANNELS + column, mask=valid, other=0.0)[None, :]
    tl.store(grad_x + place, ((g + values * along + constant) * scale).to(grad_x.dtype.element_ty), mask=mask)
