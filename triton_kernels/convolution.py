"""Sparse convolution: the sum over offsets k, over the pairs (in, out) of k, of x[in] @ W[k]; and its gradients."""

import torch

from triton_kernels.kernel_map import KernelMap

CHUNK = 4096  # pairs multiplied at once: gathered rows and products stay in the processor's cache


def _accumulate(source, target, rows_in, rows_out, weight) -> None:
    """target[out] += source[in] @ weight over the pairs; a row occurs at most once in rows_out."""
    for start in range(0, len(rows_in), CHUNK):
        i, o = rows_in[start : start + CHUNK], rows_out[start : start + CHUNK]
        target.index_add_(0, o, (source.index_select(0, i) @ weight).to(target.dtype))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, rows_in, rows_out, n_out):
        ctx.save_for_backward(x, weight)
        ctx.rows = rows_in, rows_out
        # float32 at least: the sum over offsets must not round to half precision at every step
        out = x.new_zeros(n_out, weight.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
        for w, i, o in zip(weight, rows_in, rows_out, strict=True):
            _accumulate(x, out, i, o, w)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        wide = torch.promote_types(x.dtype, torch.float32)
        grad_x = torch.zeros_like(x, dtype=wide) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for k, (i, o) in enumerate(zip(*ctx.rows, strict=True)):
            if grad_x is not None:
                _accumulate(grad, grad_x, o, i, weight[k].T)
            if grad_weight is not None:
                for start in range(0, len(i), CHUNK):
                    rows = slice(start, start + CHUNK)
                    grad_weight[k] += x.index_select(0, i[rows]).T @ grad.index_select(0, o[rows])
        return (
            None if grad_x is None else grad_x.to(x.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
            None,
        )


def convolve(x: torch.Tensor, weight: torch.Tensor, kernel_map: KernelMap, transposed: bool = False) -> torch.Tensor:
    """Features `[V, Cin]` and weight `[K, Cin, Cout]` -> `[V', Cout]`.

    A transposed convolution reads the map from its coarse rows to its fine ones, with the same weight index.
    """
    if transposed:
        return _Convolution.apply(x, weight, kernel_map.coarse, kernel_map.fine, kernel_map.n_fine)
    return _Convolution.apply(x, weight, kernel_map.fine, kernel_map.coarse, kernel_map.n_coarse)
