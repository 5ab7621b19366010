"""Sparse convolution: the sum over offsets k, over the pairs (in, out) of k, of x[in] @ W[k]; and its gradients.

There are two implementations, registered as torch operators with fakes: `*_pairs` in torch, for a `Pairs` map, and
`*_tiles` in Triton, for a `Tiles` map. Both accumulate in float32 at least, and in a fixed order: each run gives the
same results.
"""

import itertools

import torch

from triton_kernels.backend import cdiv, kernels, like, operator
from triton_kernels.kernel_map import BLOCK, Pairs, Plan, Side, Tiles

SUM = 0  # the mode of embedding_bag


def convolve(
    x: torch.Tensor, weight: torch.Tensor, kernel_map: Pairs | Tiles, transposed: bool = False
) -> torch.Tensor:
    """The convolution `[V', Cout]` of features `[V, Cin]` with a weight `[K, Cin, Cout]`, in the features' type.

    The weight may have a wider type, and its gradient has the weight's: in float16 it would overflow. A transposed
    convolution reads the map from coarse rows to fine ones, with the same weight index.
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
        how = s.read, s.written, s.order, s.starts, s.counts, ctx.map.fine is None, mirror
        grad_x, grad_weight = _convolve_pairs_backward(grad, x, weight, *how, for_x, for_weight)
        return grad_x if for_x else None, grad_weight if for_weight else None, None, None


class _TileConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, m, transposed):
        x, cast = x.contiguous(), weight.to(x.dtype).contiguous()  # cast once, for forward and backward
        ctx.save_for_backward(x, cast)
        ctx.map, ctx.transposed = m, transposed
        return _tiles(x, cast, m, to_fine=transposed)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        m, grad = ctx.map, grad.contiguous()
        for_x, for_weight = ctx.needs_input_grad[:2]
        grad_x = _tiles(grad, weight, m, to_fine=not ctx.transposed, transpose=True) if for_x else None
        rows = (m.pairs_coarse, m.pairs_fine) if ctx.transposed else (m.pairs_fine, m.pairs_coarse)
        grad_weight = _weight_gradient_tiles(x, grad, *rows, m.start) if for_weight else None
        return grad_x, grad_weight, None, None  # autograd casts them to their inputs' types


def _side(m: Pairs | Tiles, to_fine: bool) -> tuple[Side | Plan, bool]:
    """The side of a map that writes its fine or its coarse rows, and whether its offsets are mirrored."""
    return (m.coarse, to_fine) if m.fine is None else (m.fine if to_fine else m.coarse, False)


def _tiles(x: torch.Tensor, weight: torch.Tensor, m: Tiles, to_fine: bool, transpose: bool = False) -> torch.Tensor:
    """x times each offset's weight or its transpose, summed into the map's fine or coarse rows."""
    p, mirror = _side(m, to_fine)
    return _convolve_tiles(x, weight, p.order, p.table, p.lists, p.counts, p.height, mirror, transpose)


def _padded(count: int, dtype: torch.dtype) -> int:
    """The number of rows to multiply for `count` of them: in half precision up to an eighth or 63 more.

    oneDNN compiles a kernel for each number of rows, in half a millisecond, and caches only a thousand.
    """
    step = 1 if dtype.itemsize > 2 else 1 << max(count.bit_length() - 4, 6)
    return cdiv(count, step) * step


def _gatherer(source: torch.Tensor, counts: list[int]):
    """A function `rows -> source[rows]`, padded with zeros, that writes into one buffer of the largest count's size."""
    buffer = source.new_empty(_padded(max(counts, default=0), source.dtype), source.shape[1])

    def gather(rows):
        count, size = len(rows), _padded(len(rows), source.dtype)
        torch.index_select(source, 0, rows, out=buffer[:count])
        if size > count:
            buffer[count:size] = 0
        return buffer[:size]

    return gather


def _blocks(counts: list[int], volume: int, *rows: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """For each block and each offset k that occurs in it: k, and its part of each of the pairs' `rows`."""
    parts = list(zip(*(r.split(counts) for r in rows), strict=True))  # one call, instead of one for each product
    spans = (enumerate(parts[i : i + volume]) for i in range(0, len(counts), volume))
    return [[(k, *part) for k, part in span if len(part[0])] for span in spans]


def _multiply(x, matrices, order, starts, counts, blocks, same, seen=None):
    """The sums `[n, C']` of x[read] @ matrices[k] over the pairs. Calls `seen(k, written, x[read])` for each product.

    All products of a block are kept, and then each row's are added up at once, in float32 at least: adding them to the
    rows offset by offset is slower. If the rows read are the `same` as those written, the middle offset pairs each row
    with itself: its product needs no gathering and is added last.
    """
    volume, gather = len(matrices), _gatherer(x, counts)
    out = x.new_empty(len(starts) - 1, matrices[0].shape[1])
    pairs = [sum(counts[i : i + volume]) for i in range(0, len(counts), volume)]
    # the padding of each product is overwritten by the next product
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
def _convolve_tiles(*arguments):
    return kernels("convolution").convolve(*arguments)


@operator(
    "weight_gradient_tiles(Tensor x, Tensor grad, Tensor rows_in, Tensor rows_out, Tensor start) -> Tensor",
    lambda x, grad, _in, _out, start: x.new_empty(len(start) - 1, x.shape[1], grad.shape[1], dtype=torch.float32),
)
def _weight_gradient_tiles(*arguments):
    return kernels("convolution").weight_gradient(*arguments)
