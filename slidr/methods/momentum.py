"""What contrastive methods with a momentum encoder share (He et al., CVPR 2020): the slow copy, and the queue of keys.

Both change in `Learner.after_step` alone. They are in the state dict, and hence in checkpoints.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from slidr.training import distributed


class MomentumCopy(nn.Module):
    """A network whose parameters follow another's slowly; no gradient reaches it.

    Only parameters follow: its batch norms keep running statistics of their own, which a forward pass in train mode
    moves.

    Args:
        network: what it follows, and equals at first.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs):
        """What the slow network makes of the inputs, without a graph."""
        return self.network(*inputs)

    @torch.no_grad()
    def follow(self, network: nn.Module, keep: float) -> None:
        """Each parameter becomes keep * itself + (1 - keep) * that of `network`."""
        for slow, fast in zip(self.network.parameters(), network.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)


class Queue(nn.Module):
    """The last keys, as a ring: the newest take the place of the oldest. Equal in all processes.

    Args:
        size: keys that it holds.
        channels: of each.

    Attributes:
        keys: `[size, channels]`, normalised Gaussian noise at first.
        place: `[]` int64, where the next key goes.
    """

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, channels), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: torch.Tensor) -> None:
        """Put in the keys `[n, channels]` of all processes, in the order of their ranks; n may differ."""
        keys, _ = distributed.gathered(keys)
        size = len(self.keys)
        places = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.keys[places[-size:]] = keys[-size:].to(self.keys.dtype)
        self.place.add_(len(keys)).remainder_(size)
