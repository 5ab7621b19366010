"""A step whose loss or gradient was NaN or infinite, looked at again."""

from pathlib import Path

import torch
from torch import nn

from data.files import InputError
from data.loading import Loader
from slidr.tensor_files import read_tensors
from slidr.training.learner import Learner
from slidr.training.loop import seed_step


def read_replay(path: Path) -> dict:
    """The content of a file that such a step left; InputError if it is something else."""
    content = read_tensors(path)
    kinds = {"settings": dict, "learner": dict, "step": int, "ids": list}
    if not all(isinstance(content.get(name), kind) for name, kind in kinds.items()) or not 0 <= content["step"] < 2**63:
        raise InputError(f"{path} is no file to replay; name a nonfinite-<step>.pt of a run's folder.")
    return content


def replay(content: dict, loader: Loader, learner: Learner, device: torch.device) -> list[str]:
    """Run that step again in float32 and find where numbers stop being finite; what there is to say, line by line.

    Args:
        content: of `read_replay`.
        loader, learner: as `slidr.training.fit` takes them, of the same settings.

    Raises InputError if the file is of another network.
    """
    try:
        learner.load_state_dict(content["learner"])
    except RuntimeError as error:
        raise InputError(f"the file to replay is of another network ({str(error).splitlines()[0]}).") from error
    epoch, skip = divmod(content["step"], len(loader))
    loader.set_epoch(epoch, skip)
    batch = next(iter(loader)).to(device)
    lines = [f"step {content['step']}, epoch {epoch + 1}: frames {', '.join(batch.ids)}"]
    for name in ("points", "images"):
        values = getattr(batch, name, None)
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

    leaves = [(name, module) for name, module in learner.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(look(name)) for name, module in leaves]
    learner.train()
    seed_step(content["settings"]["seed"], content["step"])
    loss = learner(batch).loss
    for hook in hooks:
        hook.remove()
    lines.append(first[0] if first else "the outputs of all layers are finite")
    lines.append(f"loss in float32: {float(loss.detach()):.6g}")
    loss.backward()
    broken = [n for n, p in learner.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    lines.append(f"gradients that are not finite: {', '.join(broken) or 'none'}")
    return lines
