"""Sparse convolution: the sum over offsets k, over the pairs (in, out) of k, of x[in] @ W[k]; and its gradients."""

import torch

from triton_kernels.kernel_map import KernelMap

CHUNK = 4096  # pairs multiplied at once: gathered rows and products stay in the processor's cache


class _Convolution(torch.autograd.Function):
    """Per offset and chunk of pairs: gather, multiply, add.

    A row occurs at most once among the outputs of an offset, and once among its inputs, so index_add_ never adds twice
    to a row in one call: results are the same from run to run. Sums are kept in float32 at least: adding up offsets in
    half precision would round at every step.
    """

    @staticmethod
    def forward(ctx, x, weight, rows_in, rows_out, n_out, centre):
        ctx.save_for_backward(x, weight)
        ctx.rows, ctx.centre = (rows_in, rows_out), centre
        wide = torch.promote_types(x.dtype, torch.float32)
        if centre is None:
            out = x.new_zeros(n_out, weight.shape[2], dtype=wide)
        else:
            out = (x @ weight[centre]).to(wide)
        for k, i, o in _chunks(rows_in, rows_out, centre):
            out.index_add_(0, o, (x.index_select(0, i) @ weight[k]).to(wide))
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        wide = torch.promote_types(x.dtype, torch.float32)
        for_x, for_weight = ctx.needs_input_grad[:2]
        grad_x = torch.zeros_like(x, dtype=wide) if for_x else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
        if ctx.centre is not None:
            if for_x:
                grad_x += grad @ weight[ctx.centre].T
            if for_weight:
                grad_weight[ctx.centre] = x.T @ grad
        for k, i, o in _chunks(*ctx.rows, ctx.centre):
            gathered = grad.index_select(0, o)
            if for_x:
                grad_x.index_add_(0, i, (gathered @ weight[k].T).to(wide))
            if for_weight:
                grad_weight[k] += x.index_select(0, i).T @ gathered
        return (
            grad_x.to(x.dtype) if for_x else None,
            grad_weight.to(weight.dtype) if for_weight else None,
            *(None,) * 4,
        )


def _chunks(rows_in, rows_out, centre):
    """(k, rows in, rows out) of at most CHUNK pairs; the centre, where every row meets itself, needs no gathering."""
    for k, (i, o) in enumerate(zip(rows_in, rows_out, strict=True)):
        if k != centre:
            yield from ((k, a, b) for a, b in zip(i.split(CHUNK), o.split(CHUNK), strict=True) if len(a))


def convolve(x: torch.Tensor, weight: torch.Tensor, kernel_map: KernelMap, transposed: bool = False) -> torch.Tensor:
    """Features `[V, Cin]` and weight `[K, Cin, Cout]` -> `[V', Cout]`.

    A transposed convolution reads the map from its coarse rows to its fine ones, with the same weight index.
    """
    m = kernel_map
    rows = (m.coarse, m.fine, m.n_fine) if transposed else (m.fine, m.coarse, m.n_coarse)
    return _Convolution.apply(x, weight, *rows, m.centre)
