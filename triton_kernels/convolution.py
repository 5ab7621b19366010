"""Sparse convolution: the sum over offsets k, over the pairs (in, out) of k, of x[in] @ W[k]; and its gradients.

Two ways, each registered as torch operators with fakes: `*_pairs` in torch, for a `Pairs` map, and `*_tiles` in Triton,
for a `Tiles` map. Both accumulate in float32 at least, and add in a fixed order: results are the same from run to run.
"""

import itertools

import torch
import triton
import triton.language as tl

from triton_kernels.backend import INTERPRETED, UNSPECIALIZED, cdiv, launch, like, operator
from triton_kernels.configurations import configuration
from triton_kernels.kernel_map import BLOCK, Pairs, Plan, Side, Tiles

SUM = 0  # a mode of embedding_bag


def convolve(
    x: torch.Tensor, weight: torch.Tensor, kernel_map: Pairs | Tiles, transposed: bool = False
) -> torch.Tensor:
    """Features `[V, Cin]` and weight `[K, Cin, Cout]` -> `[V', Cout]` in the features' type.

    The weight may be of a wider type; its gradient is, so that it does not overflow in float16. A transposed
    convolution reads the map from its coarse rows to its fine ones, with the same weight index.
    """
    way = _PairConvolution if isinstance(kernel_map, Pairs) else _TileConvolution
    return way.apply(x, weight, kernel_map, transposed)


class _PairConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, m, transposed):
        ctx.save_for_backward(x, weight)
        ctx.map, ctx.transposed = m, transposed
        s, mirror = _side(m, to_fine=transposed)
        return _convolve_pairs(x.contiguous(), weight, s.read, s.order, s.starts, s.counts, m.fine is None, mirror)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad[:2]
        s, mirror = _side(ctx.map, to_fine=not ctx.transposed)
        pairs = s.read, s.written, s.order, s.starts, s.counts
        grad_x, grad_weight = _convolve_pairs_backward(
            grad, x, weight, *pairs, ctx.map.fine is None, mirror, for_x, for_weight
        )
        return grad_x if for_x else None, grad_weight if for_weight else None, None, None


class _TileConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, m, transposed):
        x, cast = x.contiguous(), weight.to(x.dtype).contiguous()  # cast once, for both ways
        ctx.save_for_backward(x, cast)
        ctx.map, ctx.transposed = m, transposed
        return _tiles(x, cast, m, to_fine=transposed)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        m, grad = ctx.map, grad.contiguous()
        for_x, for_weight = ctx.needs_input_grad[:2]
        grad_x = _tiles(grad, weight, m, to_fine=not ctx.transposed, transpose=True) if for_x else None
        if not for_weight:
            return grad_x, None, None, None
        rows = (m.pairs_coarse, m.pairs_fine) if ctx.transposed else (m.pairs_fine, m.pairs_coarse)
        grad_weight = _weight_gradient_tiles(x, grad, *rows, m.start)  # autograd itself brings it to the weight's type
        return grad_x, grad_weight, None, None


def _side(m: Pairs | Tiles, to_fine: bool) -> tuple[Side | Plan, bool]:
    """The side of a map that writes its fine or coarse rows, and whether with the offsets mirrored."""
    return (m.coarse, to_fine) if m.fine is None else (m.fine if to_fine else m.coarse, False)


def _tiles(x: torch.Tensor, weight: torch.Tensor, m: Tiles, to_fine: bool, transpose: bool = False) -> torch.Tensor:
    """x times each offset's weight (or its transpose), summed into the map's coarse or fine rows."""
    p, mirror = _side(m, to_fine)
    return _convolve_tiles(x, weight, p.order, p.table, p.lists, p.counts, p.height, mirror, transpose)


def _padded(count: int, dtype: torch.dtype) -> int:
    """Rows to multiply where `count` are wanted: an eighth more at most, or 63.

    oneDNN, which multiplies halves, compiles a kernel for each number of rows, in half a millisecond, and remembers a
    thousand kernels.
    """
    step = 1 if dtype.itemsize > 2 else 1 << max(count.bit_length() - 4, 6)
    return cdiv(count, step) * step


def _gatherer(source: torch.Tensor, counts: list[int]):
    """`rows -> source[rows]`, zeros up to the padded size behind them, in one buffer for the largest count."""
    buffer = source.new_empty(_padded(max(counts, default=0), source.dtype), source.shape[1])

    def gather(rows):
        count, size = len(rows), _padded(len(rows), source.dtype)
        torch.index_select(source, 0, rows, out=buffer[:count])
        if size > count:
            buffer[count:size] = 0
        return buffer[:size]

    return gather


def _blocks(counts: list[int], volume: int, *rows: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """Of each block: (k, its part of each of the `rows` of the pairs) for each offset k that occurs in it."""
    parts = list(zip(*(r.split(counts) for r in rows), strict=True))  # one call, not one a product
    spans = (enumerate(parts[i : i + volume]) for i in range(0, len(counts), volume))
    return [[(k, *part) for k, part in span if len(part[0])] for span in spans]


def _multiply(x, matrices, order, starts, counts, blocks, same, seen=None):
    """Sums `[n, C']` of the pairs' x[read] @ matrices[k]. `seen(k, written, x[read])` is called for each product.

    The products of a block stand in memory until each row's are added up, all at once and in float32 at least: adding
    them to the rows offset by offset takes longer. If the rows read are the `same` as those written, the offset in the
    middle reads each row itself: a product without gathering, added last.
    """
    volume, gather = len(matrices), _gatherer(x, counts)
    out = x.new_empty(len(starts) - 1, matrices[0].shape[1])
    pairs = [sum(counts[i : i + volume]) for i in range(0, len(counts), volume)]
    # what the padding of a product writes, the next product overwrites
    padding = max((_padded(count, x.dtype) - count for count in counts), default=0)
    products = x.new_empty(max(pairs, default=0) + padding, out.shape[1])
    begin = 0
    for at, block, places in zip(range(0, len(out), BLOCK), blocks, order.split(pairs), strict=False):
        rows, end = slice(at, at + BLOCK), 0
        for k, read, *written in block:
            gathered = gather(read)
            torch.mm(gathered, matrices[k], out=products[end : end + len(gathered)])
            end += len(read)
            if seen is not None:
                seen(k, *written, gathered)
        bags = starts[at : at + BLOCK + 1] - begin
        begin += end
        total = torch.embedding_bag(products, places, bags, mode=SUM, include_last_offset=True)[0]
        if same:
            torch.addmm(total, x[rows], matrices[volume // 2], out=out[rows])
        else:
            out[rows] = total
    return out


@operator(
    "convolve_pairs(Tensor x, Tensor weight, Tensor read, Tensor order, Tensor starts, int[] counts, bool same,"
    " bool mirror) -> Tensor",
    lambda x, weight, read, order, starts, *_: x.new_empty(len(starts) - 1, weight.shape[2]),
)
def _convolve_pairs(x, weight, read, order, starts, counts, same, mirror):
    matrices = weight.to(x.dtype).unbind()
    blocks = _blocks(counts, len(weight), read)
    return _multiply(x, matrices[::-1] if mirror else matrices, order, starts, counts, blocks, same)


@operator(
    "convolve_pairs_backward(Tensor grad, Tensor x, Tensor weight, Tensor read, Tensor written, Tensor order,"
    " Tensor starts, int[] counts, bool same, bool mirror, bool for_x, bool for_weight) -> (Tensor, Tensor)",
    lambda grad, x, weight, *rest: (like(x, rest[-2]), like(weight, rest[-1])),
)
def _convolve_pairs_backward(grad, x, weight, read, written, order, starts, counts, same, mirror, for_x, for_weight):
    grad, wide = grad.contiguous(), torch.promote_types(x.dtype, torch.float32)
    matrices = weight.to(x.dtype).transpose(1, 2).unbind()
    grad_weight = torch.zeros_like(weight if for_weight else weight[:0], dtype=wide)
    totals, gather = grad_weight.unbind(), _gatherer(x, counts)
    if mirror:
        matrices, totals = matrices[::-1], totals[::-1]
    blocks = _blocks(counts, len(weight), read, written)

    def add(k, mine, theirs):
        if x.dtype == wide:
            totals[k].addmm_(mine.T, theirs)
        else:
            totals[k].add_(mine.T @ theirs)

    def seen(k, rows, gathered):
        add(k, gather(rows), gathered)

    if for_x:
        grad_x = _multiply(grad, matrices, order, starts, counts, blocks, same, seen if for_weight else None)
    else:
        grad_x, gather_grad = x[:0].clone(), _gatherer(grad, counts)
        for k, rows_read, rows_written in itertools.chain(*blocks):
            seen(k, rows_written, gather_grad(rows_read))
    if same and for_weight:
        add(len(weight) // 2, x, grad)
    return grad_x, grad_weight.to(weight.dtype)


@operator(
    "convolve_tiles(Tensor x, Tensor weight, Tensor order, Tensor table, Tensor lists, Tensor counts, int height,"
    " bool mirror, bool transpose) -> Tensor",
    lambda x, weight, order, *rest: x.new_empty(len(order), weight.shape[1 if rest[-1] else 2]),
)
def _convolve_tiles(x, weight, order, table, lists, counts, height, mirror, transpose):
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
        _convolve, (cdiv(c_out, c.columns) * counts.shape[0], c.splits, 1),
        x, weight, partial, order, table, lists, counts, n, warps=c.warps, stages=c.stages,
        VOLUME=volume, C_IN=c_in, C_OUT=c_out, STRIDE_IN=strides[0], STRIDE_OUT=strides[1], MIRROR=mirror,
        HEIGHT=height, COLUMNS=c.columns, DEPTH=c.depth, SPLITS=c.splits, PRECISION=_precision(), AS_FLOAT=INTERPRETED,
    )  # fmt: skip
    return out if c.splits == 1 else partial.sum(0).to(x.dtype)


@operator(
    "weight_gradient_tiles(Tensor x, Tensor grad, Tensor rows_in, Tensor rows_out, Tensor start) -> Tensor",
    lambda x, grad, _in, _out, start: x.new_empty(len(start) - 1, x.shape[1], grad.shape[1], dtype=torch.float32),
)
def _weight_gradient_tiles(x, grad, rows_in, rows_out, start):
    volume, pairs, c_in, c_out = start.shape[0] - 1, rows_in.shape[0], x.shape[1], grad.shape[1]
    if not pairs:
        return x.new_zeros(volume, c_in, c_out, dtype=torch.float32)
    c = configuration("weight_gradient", c_in, c_out, x.dtype, pairs // volume, x.device)
    partial = x.new_empty(c.splits, volume, c_in, c_out, dtype=torch.float32)
    tiles = cdiv(c_in, c.rows) * cdiv(c_out, c.columns)
    launch(
        _weight_gradient, (tiles, volume, c.splits), x, grad, partial, rows_in, rows_out, start,
        warps=c.warps, stages=c.stages,
        C_IN=c_in, C_OUT=c_out, ROWS=c.rows, COLUMNS=c.columns, DEPTH=c.depth, SPLITS=c.splits, VOLUME=volume,
        PRECISION=_precision(), AS_FLOAT=INTERPRETED,
    )  # fmt: skip
    return partial[0] if c.splits == 1 else partial.sum(0)


def _precision() -> str:
    """How float32 is multiplied: as torch.set_float32_matmul_precision says."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _convolve(
    x, weight, out, order, table, lists, counts, n,
    VOLUME: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr, STRIDE_IN: tl.constexpr, STRIDE_OUT: tl.constexpr,
    MIRROR: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """One tile of rows times one of columns: a masked implicit GEMM over the offsets that occur in the tile.

    One flat loop over (listed offset, piece of the input channels): a nested one compiles without asynchronous copies.
    """
    side: tl.constexpr = (C_OUT + COLUMNS - 1) // COLUMNS  # tiles side by side gather the same rows
    tile = tl.program_id(0) // side
    slot = tile.to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    inside = slot < n
    column = tl.program_id(0) % side * COLUMNS + tl.arange(0, COLUMNS)
    pieces: tl.constexpr = (C_IN + DEPTH - 1) // DEPTH
    steps = tl.load(counts + tile) * pieces
    listed = lists + tile.to(tl.int64) * VOLUME
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    for step in range(tl.program_id(1), steps, SPLITS):
        k = tl.load(listed + step // pieces).to(tl.int64)
        row = tl.load(table + k * n + slot, mask=inside, other=-1)
        depth = step % pieces * DEPTH + tl.arange(0, DEPTH)
        if MIRROR:
            k = VOLUME - 1 - k
        a_mask = (row >= 0)[:, None]
        b_mask = (column < C_OUT)[None, :]
        if C_IN % DEPTH != 0:
            a_mask &= (depth < C_IN)[None, :]
            b_mask &= (depth < C_IN)[:, None]
        a = tl.load(x + row.to(tl.int64)[:, None] * C_IN + depth[None, :], mask=a_mask, other=0.0)
        b = tl.load(
            weight + k * (C_IN * C_OUT) + depth[:, None] * STRIDE_IN + column[None, :] * STRIDE_OUT,
            mask=b_mask,
            other=0.0,
        )
        if AS_FLOAT:  # the interpreter multiplies bfloat16 wrongly
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    row = tl.load(order + slot, mask=inside, other=0).to(tl.int64) + tl.program_id(1).to(tl.int64) * n
    at = out + row[:, None] * C_OUT + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside[:, None] & (column < C_OUT)[None, :])


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _weight_gradient(
    x, grad, out, rows_in, rows_out, start,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, VOLUME: tl.constexpr, PRECISION: tl.constexpr, AS_FLOAT: tl.constexpr,
):  # fmt: skip
    """out[split, k] = sum over its share of the pairs of k of x[in]^T @ grad[out]; always float32: halves overflow."""
    tiles_out: tl.constexpr = (C_OUT + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0)
    k = tl.program_id(1)
    split = tl.program_id(2)
    i = tile // tiles_out * ROWS + tl.arange(0, ROWS)
    j = tile % tiles_out * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(start + k)
    end = tl.load(start + k + 1)
    share = tl.cdiv(end - begin, SPLITS * DEPTH) * DEPTH
    begin += split * share
    end = tl.minimum(begin + share, end)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(begin, end, DEPTH):
        pair = at + tl.arange(0, DEPTH)
        inside = pair < end
        a_row = tl.load(rows_in + pair, mask=inside, other=0).to(tl.int64)
        b_row = tl.load(rows_out + pair, mask=inside, other=0).to(tl.int64)
        a_mask = inside[:, None]
        b_mask = inside[:, None]
        if C_IN % ROWS != 0:
            a_mask &= (i < C_IN)[None, :]
        if C_OUT % COLUMNS != 0:
            b_mask &= (j < C_OUT)[None, :]
        a = tl.load(x + a_row[:, None] * C_IN + i[None, :], mask=a_mask, other=0.0)
        b = tl.load(grad + b_row[:, None] * C_OUT + j[None, :], mask=b_mask, other=0.0)
        if AS_FLOAT:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    block = out + (split.to(tl.int64) * VOLUME + k) * (C_IN * C_OUT)
    tl.store(block + i[:, None] * C_OUT + j[None, :], total, mask=(i < C_IN)[:, None] & (j < C_OUT)[None, :])
