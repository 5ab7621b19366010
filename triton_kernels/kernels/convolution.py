"""Sparse convolution in Triton: a masked implicit GEMM, and the gradient of its weight."""

import torch
import triton
import triton.language as tl

from triton_kernels.backend import cdiv
from triton_kernels.configurations import configuration
from triton_kernels.kernels import INTERPRETED, UNSPECIALIZED, launch


def convolve(x, weight, order, table, lists, counts, height, mirror, transpose):
    """The operator convolve_tiles: `[n, C']`, the sums of x[neighbour] @ W[k], over the neighbours in a plan.

    `mirror`: take the weight of each offset's mirror image. `transpose`: multiply by W[k]^T.
    """
    volume, c_in, c_out = weight.shape
    strides = (c_out, 1)
    if transpose:
        c_in, c_out, strides = c_out, c_in, (1, c_out)
    n = order.shape[0]  # len(order) takes four times as long
    out = x.new_empty(n, c_out)
    if not n:
        return out
    c = configuration("convolve", c_in, c_out, x.dtype, n, x.device)
    partial = out if c.splits == 1 else x.new_empty((c.splits, *out.shape), dtype=torch.float32)
    launch(
        _convolve, (cdiv(c_out, c.block_n) * counts.shape[0], c.splits, 1),
        x, weight, partial, order, table, lists, counts, n, warps=c.warps, stages=c.stages,
        VOLUME=volume, C_IN=c_in, C_OUT=c_out, STRIDE_IN=strides[0], STRIDE_OUT=strides[1], MIRROR=mirror,
        BLOCK_M=height, BLOCK_N=c.block_n, BLOCK_K=c.block_k, SPLITS=c.splits, PRECISION=_precision(),
        AS_FLOAT=INTERPRETED,
    )  # fmt: skip
    return out if c.splits == 1 else partial.sum(0).to(x.dtype)


def weight_gradient(x, grad, rows_in, rows_out, start):
    """The operator weight_gradient_tiles: `[K, Cin, Cout]` float32, the sums over the pairs of x[in]^T @ grad[out]."""
    volume, pairs, c_in, c_out = start.shape[0] - 1, rows_in.shape[0], x.shape[1], grad.shape[1]
    if not pairs:
        return x.new_zeros(volume, c_in, c_out, dtype=torch.float32)
    c = configuration("weight_gradient", c_in, c_out, x.dtype, pairs // volume, x.device)
    partial = x.new_empty(c.splits, volume, c_in, c_out, dtype=torch.float32)
    tiles = cdiv(c_in, c.block_m) * cdiv(c_out, c.block_n)
    launch(
        _weight_gradient, (tiles, volume, c.splits), x, grad, partial, rows_in, rows_out, start,
        warps=c.warps, stages=c.stages,
        C_IN=c_in, C_OUT=c_out, BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, SPLITS=c.splits, VOLUME=volume,
        PRECISION=_precision(), AS_FLOAT=INTERPRETED,
    )  # fmt: skip
    return partial[0] if c.splits == 1 else partial.sum(0)


def _precision() -> str:
    """How float32 is multiplied: as set by torch.set_float32_matmul_precision."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _convolve(
    x, weight, out, order, table, lists, counts, n,
    VOLUME: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr, STRIDE_IN: tl.constexpr, STRIDE_OUT: tl.constexpr,
    MIRROR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """One tile of the output: a masked implicit GEMM over the offsets that occur among its rows.

    One flat loop over (listed offset, BLOCK_K input channels): a nested loop compiles without asynchronous copies.
    """
    across: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N  # consecutive programs gather the same rows
    tile = tl.program_id(0) // across
    slot = tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = slot < n
    column = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    chunks: tl.constexpr = (C_IN + BLOCK_K - 1) // BLOCK_K
    steps = tl.load(counts + tile) * chunks
    listed = lists + tile.to(tl.int64) * VOLUME
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.program_id(1), steps, SPLITS):
        k = tl.load(listed + step // chunks).to(tl.int64)
        row = tl.load(table + k * n + slot, mask=inside, other=-1)
        channel = step % chunks * BLOCK_K + tl.arange(0, BLOCK_K)
        if MIRROR:
            k = VOLUME - 1 - k
        a_mask = (row >= 0)[:, None]
        b_mask = (column < C_OUT)[None, :]
        if C_IN % BLOCK_K != 0:
            a_mask &= (channel < C_IN)[None, :]
            b_mask &= (channel < C_IN)[:, None]
        a = tl.load(x + row.to(tl.int64)[:, None] * C_IN + channel[None, :], mask=a_mask, other=0.0)
        b_at = weight + k * (C_IN * C_OUT) + channel[:, None] * STRIDE_IN + column[None, :] * STRIDE_OUT
        b = tl.load(b_at, mask=b_mask, other=0.0)
        if AS_FLOAT:  # the interpreter multiplies bfloat16 wrongly
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    row = tl.load(order + slot, mask=inside, other=0).to(tl.int64) + tl.program_id(1).to(tl.int64) * n
    at = out + row[:, None] * C_OUT + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside[:, None] & (column < C_OUT)[None, :])


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _weight_gradient(
    x, grad, out, rows_in, rows_out, start,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr, VOLUME: tl.constexpr, PRECISION: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """out[split, k] = the sum of x[in]^T @ grad[out] over a split's pairs of k; float32, as float16 would overflow."""
    across: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    k = tl.program_id(1)
    split = tl.program_id(2)
    i = tile // across * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile % across * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(start + k)
    end = tl.load(start + k + 1)
    share = tl.cdiv(end - begin, SPLITS * BLOCK_K) * BLOCK_K
    begin += split * share
    end = tl.minimum(begin + share, end)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(begin, end, BLOCK_K):
        pair = at + tl.arange(0, BLOCK_K)
        inside = pair < end
        a_row = tl.load(rows_in + pair, mask=inside, other=0).to(tl.int64)
        b_row = tl.load(rows_out + pair, mask=inside, other=0).to(tl.int64)
        a_mask = inside[:, None]
        b_mask = inside[:, None]
        if C_IN % BLOCK_M != 0:
            a_mask &= (i < C_IN)[None, :]
        if C_OUT % BLOCK_N != 0:
            b_mask &= (j < C_OUT)[None, :]
        a = tl.load(x + a_row[:, None] * C_IN + i[None, :], mask=a_mask, other=0.0)
        b = tl.load(grad + b_row[:, None] * C_OUT + j[None, :], mask=b_mask, other=0.0)
        if AS_FLOAT:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    block = out + (split.to(tl.int64) * VOLUME + k) * (C_IN * C_OUT)
    tl.store(block + i[:, None] * C_OUT + j[None, :], total, mask=(i < C_IN)[:, None] & (j < C_OUT)[None, :])
