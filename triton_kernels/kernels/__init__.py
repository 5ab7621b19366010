"""The Triton kernels, one file an operation, and their launch. Imported by `backend.kernels` when Triton computes."""

import os

import torch
from triton.runtime import driver

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9's own default, set here to avoid its warning
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it once too, when a kernel is defined
# Sizes that change from batch to batch: Triton would compile a kernel again for each that is 1 or a multiple of 16.
UNSPECIALIZED = "n n_fine capacity size_x size_y size_z step_x step_y step_z share programs".split()
_compiled: dict[tuple, object] = {}


def launch(kernel, grid: tuple[int, int, int], *arguments, warps: int = 4, stages: int = 3, **constants) -> None:
    """Launch a Triton kernel. `constants` are its last parameters, in the kernel's order.

    Compiled kernels are cached by everything Triton itself distinguishes: types, alignment of pointers, and integers
    beyond 32 bits. Triton's own look-up takes 14 us a launch, this one 3; training on a few scans waits for launches.
    Raises ValueError if the arguments are on a GPU that is not the current one.
    """
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    device, values = arguments[0].device, []
    key = [id(kernel), device, warps, stages, *constants.values()]
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            values.append(argument.data_ptr())  # given the tensor, the launcher would query it and the driver again
            key += argument.dtype, values[-1] % 16
        else:
            key.append(argument >> 31 if isinstance(argument, int) else None)
            values.append(argument)
    if (key := tuple(key)) in _compiled:
        c, stream = _compiled[key], driver.active.get_current_stream(device.index)
        # what Triton's own `c[grid](...)` does, without its launch hooks, which device profilers do not need
        c.run(*grid, stream, c.function, c.packed_metadata, None, None, None, *values, *constants.values())
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise ValueError(f"features lie on {device}, which is not the current GPU; call torch.cuda.set_device first.")
    _compiled[key] = kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages)
