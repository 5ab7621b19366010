"""Optimisers and learning-rate schedules by name."""

import math

import torch

from slidr.config import WithTraining


def make_optimizer(settings: WithTraining, groups: list[dict]) -> torch.optim.Optimizer:
    """The optimiser of the settings over parameter groups `{"params": ..., "lr": ...}`; "lr" may be left out."""
    groups = [{"lr": settings.lr} | group for group in groups]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=settings.betas, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        dampening=settings.dampening,
        weight_decay=settings.weight_decay,
    )


def rate_factor(settings: WithTraining, step: int, steps: int) -> float:
    """Share of its learning rate that each group has in `step`, counted from 0, with `steps` steps an epoch.

    cosine: cosine to `final_lr`, stepped per epoch (SLidR's published code). warmup_cosine: linear over `warmup_steps`,
    then cosine to `final_lr`, stepped per step. one_cycle: cosine up and down, as torch's OneCycleLR, rates only.
    """
    total = settings.epochs * steps
    if settings.schedule == "one_cycle":
        first, peak = 1 / settings.one_cycle_start, settings.one_cycle_peak * total - 1
        if step <= peak:
            return _cosine(first, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, first / settings.one_cycle_end, (step - peak) / (total - 1 - peak))
    last = settings.final_lr / settings.lr
    if settings.schedule == "cosine":
        return _cosine(1.0, last, (step // steps) / settings.epochs)
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return _cosine(1.0, last, (step - settings.warmup_steps) / max(total - settings.warmup_steps, 1))


def _cosine(first: float, last: float, share: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))
