"""Batch norm in Triton: three launches forward and three backward. Several processes finish their sums in torch."""

import functools

import torch
import triton
import triton.language as tl

from triton_kernels.backend import cdiv, like
from triton_kernels.kernels import UNSPECIALIZED, launch
from triton_kernels.normalization import finish_statistics, finish_sums

BLOCK_M, BLOCK_N = 32, 128  # rows and, at most, columns of a tile
FINISH = {"BLOCK_M": 128, "BLOCK_N": 16}  # the tile that adds up the programs' sums
PROGRAMS = 512  # at most, that share the rows of a sum: enough to fill a GPU, few enough to be added up in one launch


def normalize(x, residual, relu, group, *how):
    """The operator normalize; `how`: weight, bias, running mean and variance, batches, momentum, eps."""
    (n, channels), (across, tile) = x.shape, _tile(x.shape[1])
    programs, share = _share(n)
    parts = x.new_empty(2, programs, channels, dtype=torch.float64)
    launch(_statistics_kernel, (programs, across, 1), x, parts, n, share, programs, **tile)
    if group is None:
        *parameters, momentum, eps = how
        statistics = x.new_empty(4, channels, dtype=torch.float32)
        launch(
            _finish_statistics_kernel, (cdiv(channels, FINISH["BLOCK_N"]), 1, 1), parts, *parameters, statistics, n,
            programs, momentum, eps, CHANNELS=channels, **FINISH,
        )  # fmt: skip
    else:
        statistics = finish_statistics(parts.sum(1), x, group, *how)
    out, other = torch.empty_like(x), x if residual is None else residual
    grid = cdiv(n, BLOCK_M), across, 1
    launch(_apply_kernel, grid, x, statistics, other, out, n, **tile, RESIDUAL=residual is not None, RELU=relu)
    return out, statistics


def normalize_backward(grad, x, statistics, y, relu, with_residual, group):
    """The operator normalize_backward."""
    (n, channels), (across, tile) = x.shape, _tile(x.shape[1])
    programs, share = _share(n)
    tile, active = tile | {"RELU": relu, "FROM_OUTPUT": y is not None}, x if y is None else y
    parts = x.new_empty(2, programs, channels, dtype=torch.float64)
    launch(_sums_kernel, (programs, across, 1), grad, x, active, statistics, parts, n, share, programs, **tile)
    if group is None:
        sums, line = (x.new_empty(2, channels, dtype=torch.float32) for _ in range(2))
        grid = cdiv(channels, FINISH["BLOCK_N"]), 1, 1
        launch(_finish_sums_kernel, grid, parts, statistics, sums, line, n, programs, CHANNELS=channels, **FINISH)
    else:
        sums, line = finish_sums(parts, x, statistics, group)
    grad_x, grad_residual, grid = torch.empty_like(x), like(x, with_residual), (cdiv(n, BLOCK_M), across, 1)
    into = grad_x, grad_residual
    launch(_grad_kernel, grid, grad, x, active, statistics, line, *into, n, **tile, RESIDUAL=with_residual)
    return grad_x, grad_residual, sums


@functools.cache
def _tile(channels: int) -> tuple[int, dict[str, int]]:
    """The number of tiles across the channels, and a tile's constants."""
    block_n = min(1 << (channels - 1).bit_length(), BLOCK_N)
    return cdiv(channels, block_n), {"CHANNELS": channels, "BLOCK_M": BLOCK_M, "BLOCK_N": block_n}


def _share(n: int) -> tuple[int, int]:
    """The number of programs that share n rows, and the rows of each."""
    share = max(cdiv(cdiv(n, BLOCK_M), PROGRAMS), 1) * BLOCK_M
    return cdiv(n, share), share


@triton.jit
def _place(begin, end, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(element offsets, mask, columns, column mask) of the tile of this program's columns that begins at a row."""
    row = begin + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < end)[:, None] & (column < CHANNELS)[None, :]
    return row.to(tl.int64)[:, None] * CHANNELS + column[None, :], mask, column, column < CHANNELS


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _statistics_kernel(
    x, parts, n, share, programs, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The sums of x and x^2 over each program's share of the rows, in float64."""
    begin = tl.program_id(0) * share
    end = tl.minimum(begin + share, n)
    of_x = tl.zeros((BLOCK_N,), tl.float64)
    of_square = tl.zeros((BLOCK_N,), tl.float64)
    for at in range(begin, end, BLOCK_M):
        place, mask, _column, _valid = _place(at, end, CHANNELS, BLOCK_M, BLOCK_N)
        values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(end - at, BLOCK_M).to(tl.float32)
        mean = tl.sum(values, 0) / count
        centred = tl.where(mask, values - mean[None, :], 0.0)  # before squaring: float32 would cancel
        weighted = mean.to(tl.float64) * count
        of_x += weighted
        of_square += tl.sum(centred * centred, 0) + weighted * mean
    _store(parts, of_x, of_square, programs, CHANNELS, BLOCK_N)


@triton.jit
def _store(parts, first, second, programs, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Write a program's two sums to its row of `parts`."""
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = parts + tl.program_id(0) * CHANNELS + column
    tl.store(out, first, mask=column < CHANNELS)
    tl.store(out + programs * CHANNELS, second, mask=column < CHANNELS)


@triton.jit
def _total(parts, programs, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's columns, which of them are channels, and their two sums over all rows of `parts`."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = column < CHANNELS
    first = tl.zeros((BLOCK_N,), tl.float64)
    second = tl.zeros((BLOCK_N,), tl.float64)
    for at in range(0, programs, BLOCK_M):
        part = at + tl.arange(0, BLOCK_M)
        mask = (part < programs)[:, None] & valid[None, :]
        place = parts + part[:, None] * CHANNELS + column[None, :]
        first += tl.sum(tl.load(place, mask=mask, other=0.0), 0)
        second += tl.sum(tl.load(place + programs * CHANNELS, mask=mask, other=0.0), 0)
    return column, valid, first, second


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _finish_statistics_kernel(
    parts, weight, bias, running_mean, running_variance, batches, statistics, n, programs, momentum, eps,
    CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """From the programs' sums to the batch's statistics and the running ones."""
    column, valid, of_x, of_square = _total(parts, programs, CHANNELS, BLOCK_M, BLOCK_N)
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
    x, statistics, residual, out, n, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    place, mask, column, valid = _place(tl.program_id(0) * BLOCK_M, n, CHANNELS, BLOCK_M, BLOCK_N)
    scale, shift = _affine(statistics, column, valid, CHANNELS)
    y = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * scale + shift
    if RESIDUAL:
        y += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _affine(statistics, column, valid, CHANNELS: tl.constexpr):
    """Scale and shift of the columns, each `[1, BLOCK_N]`."""
    scale = tl.load(statistics + 2 * CHANNELS + column, mask=valid, other=0.0)
    shift = tl.load(statistics + 3 * CHANNELS + column, mask=valid, other=0.0)
    return scale[None, :], shift[None, :]


@triton.jit
def _activated(grad, x, active, place, mask, scale, shift, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr):
    """The gradient behind the ReLU, and x, of a tile."""
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
    CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr,
):  # fmt: skip
    """The sums of the gradient and of its product with x - mean over each program's share of the rows, in float64."""
    begin = tl.program_id(0) * share
    end = tl.minimum(begin + share, n)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = column < CHANNELS
    mean = tl.load(statistics + column, mask=valid, other=0.0)[None, :]
    scale, shift = _affine(statistics, column, valid, CHANNELS)
    of_grad = tl.zeros((BLOCK_N,), tl.float64)
    of_product = tl.zeros((BLOCK_N,), tl.float64)
    for at in range(begin, end, BLOCK_M):
        place, mask, _column, _valid = _place(at, end, CHANNELS, BLOCK_M, BLOCK_N)
        g, values = _activated(grad, x, active, place, mask, scale, shift, RELU, FROM_OUTPUT)
        of_grad += tl.sum(g, 0)
        of_product += tl.sum(g * (values - mean), 0)
    _store(parts, of_grad, of_product, programs, CHANNELS, BLOCK_N)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _finish_sums_kernel(
    parts, statistics, sums, line, n, programs, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """From the programs' sums to the gradients of bias and weight, and to the line that is added to the gradient."""
    column, valid, of_grad, of_product = _total(parts, programs, CHANNELS, BLOCK_M, BLOCK_N)
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
    CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, RELU: tl.constexpr, FROM_OUTPUT: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    place, mask, column, valid = _place(tl.program_id(0) * BLOCK_M, n, CHANNELS, BLOCK_M, BLOCK_N)
    scale, shift = _affine(statistics, column, valid, CHANNELS)
    g, values = _activated(grad, x, active, place, mask, scale, shift, RELU, FROM_OUTPUT)
    if RESIDUAL:
        tl.store(grad_residual + place, g.to(grad_residual.dtype.element_ty), mask=mask)
    along = tl.load(line + column, mask=valid, other=0.0)[None, :]
    constant = tl.load(line + CHANNELS + column, mask=valid, other=0.0)[None, :]
    tl.store(grad_x + place, ((g + values * along + constant) * scale).to(grad_x.dtype.element_ty), mask=mask)
