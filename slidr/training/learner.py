"""The contract of whatever is trained: all that the one loop knows of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn


@dataclass
class Step:
    """What one batch gave.

    loss: scalar, with its graph.
    numbers: worth logging; tensors among them are detached scalars, which the loop reads together with the loss.
    carry: detached tensors that `after_step` needs (keys for a queue, say).
    """

    loss: torch.Tensor
    numbers: dict[str, torch.Tensor | float] = field(default_factory=dict)
    carry: dict[str, torch.Tensor] = field(default_factory=dict)


class Learner(nn.Module):
    """Something that learns from batches. A pretraining method is one, a trained task is one.

    All of it is in state_dict and hence in checkpoints: momentum copies and queues too, with requires_grad=False. A
    frozen teacher is not: it is held as a plain object (`slidr.teachers.Teacher`), and `identity` tells which one.

    best: (name of a validation figure, "min" or "max") by which the best checkpoint is chosen; None where validation
        figures of different epochs cannot be compared.
    """

    best: tuple[str, Literal["min", "max"]] | None = None

    def forward(self, batch) -> Step:
        """The step of a batch on this learner's device.

        Changes nothing but the running statistics of batch norm; in eval mode it talks to no other process. In train
        mode every parameter with requires_grad takes part in the loss.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Groups for the optimiser; one without "lr" takes the settings' rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self, step: Step, progress: float) -> None:
        """Called once the optimiser has moved: here momentum networks and queues move, and nowhere else.

        Args:
            step: what `forward` returned.
            progress: share of the training that is done with this step, above 0 and up to 1.
        """

    def write_model(self, path: Path) -> None:
        """Write model.pt (`slidr.networks.model_file`): what this learner has learned, for every other stage."""
        raise NotImplementedError

    def identity(self) -> dict:
        """Plain values, beside the settings, that must be equal for a run to go on."""
        return {}
