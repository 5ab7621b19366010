"""A step whose loss was NaN or infinite, looked at again."""

from pathlib import Path

import torch
from torch import nn

from data.disk import InputError, read_tensors
from data.loading import Loader
from slidr.training.loop import LossOf, seed_step


def read_replay(path: Path) -> dict:
    """The content of a file that such a step left; InputError if it is something else."""
    content = read_tensors(path)
    if not {"settings", "trained", "step", "ids"} <= content.keys():
        raise InputError(f"{path} is no file to replay; name a nonfinite-<step>.pt of a run's folder.")
    return content


def replay(content: dict, loader: Loader, loss_of: LossOf, trained: nn.Module, device: torch.device) -> list[str]:
    """Run that step again in float32 and find where numbers stop being finite; what there is to say, line by line.

    Args:
        content: of `read_replay`.
        loader, loss_of, trained: as `slidr.training.fit` takes them, of the same settings.
    """
    trained.load_state_dict(content["trained"])
    epoch, skip = divmod(content["step"], len(loader))
    loader.set_epoch(epoch, skip)
    batch = next(iter(loader)).to(device)
    lines = [f"step {content['step']}, epoch {epoch + 1}: frames {', '.join(batch.ids)}"]
    for name, values in (("points", batch.points), ("images", batch.images)):
        if values is not None and values.numel():
            broken = values.numel() - int(values.isfinite().sum())
            lines.append(f"{name} {list(values.shape)}: {values.min():.4g} to {values.max():.4g}, {broken} not finite")

    first = []

    def look(name: str):
        def hook(module: nn.Module, _inputs: tuple, output: object) -> None:
            values = getattr(output, "features", output)
            if isinstance(values, torch.Tensor) and not first and not bool(values.isfinite().all()):
                first.append(f"the first output that is not finite: {name} ({type(module).__name__})")

        return hook

    leaves = [(name, module) for name, module in trained.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(look(name)) for name, module in leaves]
    trained.train()
    seed_step(content["settings"]["seed"], content["step"])
    loss, _ = loss_of(batch)
    for hook in hooks:
        hook.remove()
    lines.append(first[0] if first else "the outputs of all layers are finite")
    lines.append(f"loss in float32: {float(loss.detach()):.6g}")
    if loss.isfinite():
        loss.backward()
        broken = [n for n, p in trained.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
        lines.append(f"gradients that are not finite: {', '.join(broken) or 'none'}")
    return lines
