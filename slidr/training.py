"""The one training loop, and the folder in which a run leaves everything."""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.disk import InputError, atomic_write
from data.frame import Batch
from slidr import config

LOG_EVERY = 10  # steps between rows of metrics.jsonl; reading the loss makes a GPU wait


class Run:
    """`output/<stage>/<name>/`: config.yaml, metrics.jsonl, TensorBoard events, model.pt, report.md, pictures.

    Raises InputError if the folder cannot be written or already holds a run.
    """

    def __init__(self, stage: str, settings: config.WithRun):
        name = settings.name or f"{settings.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
        if Path(name).name != name:
            raise InputError(f"`name` cannot be {name!r}: it names one folder inside {settings.output / stage}.")
        self.stage, self.folder = stage, settings.output / stage / name
        if (self.folder / "config.yaml").exists():
            raise InputError(f"{self.folder} already holds a run; choose another --name or remove that folder.")
        with atomic_write(self.folder / "config.yaml") as temporary:
            temporary.write_text(config.to_yaml(settings))
        self.rows: list[dict] = []
        self._metrics = open(self.folder / "metrics.jsonl", "a", buffering=1)
        self._board = SummaryWriter(str(self.folder))

    def start(self, **facts: object) -> None:
        """Print once, in one block, everything that was chosen."""
        width = max(map(len, facts))
        print(f"{self.stage} -> {self.folder}")
        for name, fact in facts.items():
            print(f"  {name.replace('_', ' '):<{width}}  {fact}", flush=True)

    def log(self, step: int, **values: float) -> None:
        """One row of numbers at `step`."""
        row = {"step": step, **values}
        self.rows.append(row)
        self._metrics.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def finish(self, report: str) -> None:
        """Close the logs and write report.md."""
        self._metrics.close()
        self._board.close()
        with atomic_write(self.folder / "report.md") as temporary:
            temporary.write_text(report)


def prepare(settings: config.Settings) -> torch.device:
    """Seed every generator, set the threads, and choose the device. InputError if the device is not there."""
    random.seed(settings.seed)
    np.random.seed(settings.seed)  # noqa: NPY002, third parties draw from it
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    name = getattr(settings, "device", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"`device` cannot be {name!r}: it is auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no {name} on this machine ({torch.cuda.device_count()} found); use --device cpu.")
    return device


def autocast(settings: config.WithRun, device: torch.device) -> torch.autocast:
    """The arithmetic that `precision` asks for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def cosine(epoch: int, epochs: int) -> float:
    """Share of the learning rate in `epoch`: cosine to 0, stepped per epoch (published code)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def sgd(settings: config.WithTraining, groups: list[dict]) -> torch.optim.SGD:
    """SGD of the published recipes over parameter groups `{"params": ..., "lr": ...}`."""
    return torch.optim.SGD(
        groups,
        lr=groups[0]["lr"],
        momentum=settings.momentum,
        dampening=settings.dampening,
        weight_decay=settings.weight_decay,
    )


def fit(
    run: Run,
    settings: config.WithTraining,
    loader: Iterable[Batch],
    optimizer: torch.optim.SGD,
    loss_of: Callable[[Batch], tuple[torch.Tensor, dict[str, float]]],
    trained: nn.Module | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train for `settings.epochs`.

    Args:
        run: where rows are logged.
        settings: epochs, precision, validate_every.
        loader: batches of the training split, with `set_epoch(epoch)`.
        optimizer: its groups' learning rates are the first epoch's; they follow a cosine, stepped per epoch.
        loss_of: a batch (on the device) -> (scalar loss, numbers worth logging).
        trained: module to put into train mode each epoch; None = everything stays in eval mode.
        validate: called every `validate_every` epochs and at the end; its numbers are logged.

    Raises InputError if the loss is no longer finite, naming the frames of that step.
    """
    device = optimizer.param_groups[0]["params"][0].device
    base = [group["lr"] for group in optimizer.param_groups]
    total, step, waited, computed, frames, images = settings.epochs * len(loader), 0, 0.0, 0.0, 0, 0
    if total == 0:
        raise InputError(f"the split `{settings.train_split}` has no batch to train on; lower --batch or add data.")
    printed = time.monotonic()
    bar = tqdm(total=total, desc=run.stage, unit="step", disable=not sys.stderr.isatty())
    for epoch in range(settings.epochs):
        loader.set_epoch(epoch)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * cosine(epoch, settings.epochs)
        if trained is not None:
            trained.train()
        before = time.perf_counter()
        for batch in loader:
            ready = time.perf_counter()
            with autocast(settings, device):
                loss, numbers = loss_of(batch.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step, frames = step + 1, frames + len(batch.ids)
            images += 0 if batch.images is None else len(batch.images)
            after = time.perf_counter()
            waited, computed = waited + ready - before, computed + after - ready
            before = after
            bar.update()
            if step % LOG_EVERY == 0 or step == total or step == 1:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise InputError(
                        f"the loss became {value} at step {step} (frames {', '.join(batch.ids)}); "
                        "lower --lr or look at these frames with `run.py show`."
                    )
                seconds = waited + computed
                row = {"loss": value, "lr": optimizer.param_groups[0]["lr"], **numbers}
                row["frames_per_second"] = frames / seconds
                if images:
                    row["images_per_second"] = images / seconds
                row["waiting_for_data"] = waited / seconds
                run.log(step, epoch=epoch, **row)
                bar.set_postfix_str(_told(row))
                if bar.disable and (time.monotonic() - printed > 15 or step == total):
                    printed = time.monotonic()
                    left = tqdm.format_interval((total - step) * seconds / step)
                    where = f"epoch {epoch + 1}/{settings.epochs}  step {step}/{total}"
                    print(f"{run.stage}: {where}  {_told(row)}  {left} left", flush=True)
        if validate and ((epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs):
            found = validate()
            run.log(step, epoch=epoch, **found)
            tqdm.write(f"{run.stage}: epoch {epoch + 1}/{settings.epochs}  {_told(found)}")
    bar.close()


def _told(row: dict[str, float]) -> str:
    """Numbers for a person: counts whole, others with four digits."""
    told = {name: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for name, value in row.items()}
    return "  ".join(f"{name.replace('_', ' ')} {text}" for name, text in told.items())
