"""The one training loop: precision, schedule, several processes, checkpoints, the log."""

import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.disk import InputError, write_tensors
from data.frame import Batch
from data.loading import Loader
from slidr import config
from slidr.training import distributed
from slidr.training.checkpoint import Checkpoints
from slidr.training.run import Run
from slidr.training.stopping import Stop, Stopped

LOG_EVERY = 10  # steps between rows of metrics.jsonl

LossOf = Callable[[Batch], tuple[torch.Tensor, dict[str, float]]]


def prepare(settings: config.Settings) -> torch.device:
    """Seed every generator, set the threads, choose the device, join the other processes if torchrun started several.

    Raises InputError if the device is not there.
    """
    seed_step(settings.seed, 0)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    name = getattr(settings, "device", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun gives each process of a machine its number
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"`device` cannot be {name!r}: it is auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise InputError(f"there is no {name} on this machine ({torch.cuda.device_count()} found); use --device cpu.")
    if getattr(settings, "deterministic", False):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        # on GPUs some operations know only one way: they say so, once each
        torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.join(device)
    return device


def seed_step(seed: int, step: int) -> None:
    """Seed Python, numpy and torch for one step of this process.

    Whatever a step draws depends on these numbers alone: a run that goes on, or a step that is looked at again, has no
    state of generators to restore.
    """
    words = np.random.SeedSequence([seed, distributed.rank(), step]).generate_state(1, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]) % 2**32)  # noqa: NPY002, third parties draw from it
    torch.manual_seed(int(words[0]))


def autocast(settings: config.WithRun, device: torch.device) -> torch.autocast:
    """The arithmetic that `precision` asks for."""
    half = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=settings.precision != "float32")


def arithmetic(settings: config.WithRun, device: torch.device) -> str:
    """Precision, device and number of processes, for the block in which a run says what was chosen."""
    others = f", {distributed.world()} processes" if distributed.world() > 1 else ""
    return f"{settings.precision} on {device}{others}" + (", deterministic" if settings.deterministic else "")


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
    loader: Loader,
    optimizer: torch.optim.SGD,
    loss_of: LossOf,
    trained: nn.Module,
    validate: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """Train for `settings.epochs`, from the newest checkpoint if the run goes on.

    Args:
        run: where rows and checkpoints go.
        settings: epochs, precision, validate_every, checkpoints, how many bad steps are left out.
        loader: batches of the training split.
        optimizer: its groups' learning rates are the first epoch's; they follow a cosine, stepped per epoch.
        loss_of: a batch (on the device) -> (scalar loss, numbers worth logging).
        trained: what is trained: put into train mode each epoch, and all of it in the checkpoints.
        validate: called with the number of finished epochs every `validate_every` of them and at the end; its numbers
            are logged. The best are those of the highest val_miou, or of the lowest val_loss.

    Raises InputError if the loss is NaN or infinite in more steps than may be left out (each leaves a file to replay),
    and Stopped after SIGTERM or SIGINT, when a checkpoint is written.
    """
    device = optimizer.param_groups[0]["params"][0].device
    base = [group["lr"] for group in optimizer.param_groups]
    steps, total = len(loader), settings.epochs * len(loader)
    if total == 0:
        raise InputError(f"the split `{settings.train_split}` has no batch to train on; lower --batch or add data.")
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    checkpoints = Checkpoints(run.folder / "checkpoints", settings.keep_checkpoints)
    state = {"step": 0, "bad_steps": 0, "best": -math.inf, "seconds": 0.0}  # with what `whole` adds, a checkpoint

    def whole() -> dict:
        return state | {
            "settings": config.what_decides(settings),
            "world": distributed.world(),
            "unread": sorted(loader.unread),
            "trained": trained.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }

    content = checkpoints.newest() if run.goes_on else None
    if content:
        state = {name: content[name] for name in state}
        trained.load_state_dict(content["trained"])
        optimizer.load_state_dict(content["optimizer"])
        scaler.load_state_dict(content["scaler"])
        loader.unread.update(content["unread"])
    if run.goes_on:
        print(f"  goes on after step {state['step']} of {total}", flush=True)
    run.log_from(state["step"])

    objective = distributed.data_parallel(trained, loss_of, device, settings.sync_batch_norm)
    buffers = list(trained.buffers())
    before_step = [buffer.clone() for buffer in buffers]
    meter, saved = _Meter(), time.monotonic()
    watched = run.first and sys.stderr.isatty()
    bar = tqdm(total=total, initial=state["step"], desc=run.stage, unit="step", disable=not watched)
    stop = Stop()

    def take_step(batch: Batch) -> tuple[dict[str, float] | None, bool]:
        """(numbers of the step, or None if it was left out; whether to stop after it)"""
        seed_step(settings.seed, state["step"])
        _copy(before_step, buffers)
        with autocast(settings, device):
            loss, numbers = objective(batch.to(device))
        value, bad, stopped = _agreed(float(loss.detach()), stop)
        optimizer.zero_grad(set_to_none=True)
        if bad:
            _copy(buffers, before_step)  # the running statistics, which have seen it
            state["bad_steps"] += 1
            _leave_out(run, settings, batch, value, whole() | {"ids": batch.ids})
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        state["step"] += 1
        return None if bad else {"loss": value, "lr": optimizer.param_groups[0]["lr"], **numbers}, stopped

    def report(epoch: int, row: dict[str, float]) -> None:
        run.log(state["step"], epoch=epoch, **row)
        bar.set_postfix_str(_told(row))
        if bar.disable and meter.line_due(state["step"] == total):
            left = tqdm.format_interval((total - state["step"]) * meter.seconds_a_step())
            where = f"epoch {epoch + 1}/{settings.epochs}  step {state['step']}/{total}"
            print(f"{run.stage}: {where}  {_told(row)}  {left} left", flush=True)

    def validated(epoch: int) -> bool:
        """Whether the network is the best so far."""
        found = validate(epoch + 1)
        run.log(state["step"], epoch=epoch, **found)
        tqdm.write(f"{run.stage}: epoch {epoch + 1}/{settings.epochs}  {_told(found)}")
        score, best = found.get("val_miou", -found.get("val_loss", math.inf)), state["best"]
        state["best"] = max(score, best)
        return score > best

    with stop:
        for epoch in range(state["step"] // steps, settings.epochs):
            loader.set_epoch(epoch, skip=state["step"] % steps)
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * cosine(epoch, settings.epochs)
            trained.train()
            meter.lap()
            for batch in loader:
                meter.data_arrived()
                row, stopped = take_step(batch)
                meter.step_done(batch)
                bar.update()
                step = state["step"]
                if row and (step % LOG_EVERY == 0 or step in (1, total)):
                    report(epoch, row | meter.read(device))
                due = (epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs
                best = bool(validate) and due and step == (epoch + 1) * steps and validated(epoch)
                if stopped or best or step == total or time.monotonic() - saved >= 60 * settings.checkpoint_minutes:
                    state["seconds"] += time.monotonic() - saved
                    saved = time.monotonic()
                    if run.first:
                        _require_finite(trained, step)
                        with run.spared("a checkpoint"):
                            checkpoints.save(whole(), best)
                    meter.lap()
                if stopped and step < total:
                    raise Stopped(
                        f"stopped by {stop.signal or 'a signal'} after step {step} of {total}; the same command with "
                        f"--resume --name {run.folder.name} goes on."
                    )
    bar.close()
    run.seconds = state["seconds"]


def _copy(to: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, values)  # in one launch


def _agreed(loss: float, stop: Stop) -> tuple[float, bool, bool]:
    """(mean loss of all processes, whether one of them is no number, whether a process was asked to stop)."""
    finite = math.isfinite(loss)
    told = torch.tensor([loss if finite else 0.0, not finite, stop.signal is not None], dtype=torch.float64)
    mean, bad, stopped = distributed.total(told).tolist()
    return (mean / distributed.world() if not bad else loss), bad > 0, stopped > 0


def _leave_out(run: Run, settings: config.WithTraining, batch: Batch, loss: float, content: dict) -> None:
    """Keep what a step needs to be looked at again. Raises InputError if there were too many of them."""
    step, left_out = content["step"], content["bad_steps"]
    path = run.folder / f"nonfinite-{step:09d}.pt"
    if run.first:
        with run.spared(path.name):
            write_tensors(path, content)
    what = f"the loss of step {step} is {loss} (frames {', '.join(batch.ids)})"
    if left_out > settings.max_bad_steps:
        raise InputError(
            f"{what}, the {left_out}. such step; `run.py pretrain --replay {path}` looks at it again; then lower --lr, "
            "or leave these frames out."
        )
    if not math.isfinite(loss):
        tqdm.write(f"{run.stage}: {what}; it is left out, and kept in {path}", file=sys.stderr)


def _require_finite(trained: nn.Module, step: int) -> None:
    for name, value in trained.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(
                f"after step {step} the weights `{name}` are no longer finite: lower --lr; the last checkpoint is "
                "from before."
            )


class _Meter:
    """Seconds and frames since the last reading, and since the beginning."""

    def __init__(self) -> None:
        self.steps, self.seconds, self._line = 0, 0.0, time.monotonic()
        self._clear()
        self.lap()

    def _clear(self) -> None:
        self.frames, self.images, self.waited, self.computed = 0, 0, 0.0, 0.0

    def lap(self) -> None:
        self._last = time.perf_counter()

    def data_arrived(self) -> None:
        self._arrived = time.perf_counter()
        self.waited += self._arrived - self._last

    def step_done(self, batch: Batch) -> None:
        self.frames += len(batch.ids) * distributed.world()
        self.images += 0 if batch.images is None else len(batch.images) * distributed.world()
        self._last, arrived = time.perf_counter(), self._arrived
        self.computed += self._last - arrived
        self.steps += 1

    def read(self, device: torch.device) -> dict[str, float]:
        """What a row says of speed and memory since the last row; the peak of memory is that of the whole run."""
        seconds = self.waited + self.computed
        row = {"frames_per_second": self.frames / seconds}
        if self.images:
            row["images_per_second"] = self.images / seconds
        row["waiting_for_data"] = self.waited / seconds
        peak = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        row["peak_memory_gib"] = peak / 2**30
        self.seconds += seconds
        self._clear()
        return row

    def line_due(self, last: bool) -> bool:
        """Whether 15 seconds have passed since a line was due."""
        due = last or time.monotonic() - self._line > 15
        self._line = time.monotonic() if due else self._line
        return due

    def seconds_a_step(self) -> float:
        return (self.seconds + self.waited + self.computed) / self.steps


def _told(row: dict[str, float]) -> str:
    """Numbers for a person: counts whole, others with four digits."""
    told = {name: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for name, value in row.items()}
    return "  ".join(f"{name.replace('_', ' ')} {text}" for name, text in told.items())
