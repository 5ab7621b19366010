"""The one place that chooses how the engine computes."""

import torch


def describe(device: torch.device) -> str:
    """What runs on `device`, in a few words for a start block."""
    return f"sparse convolution in PyTorch on {device} (gather, matmul, scatter per kernel offset)"
