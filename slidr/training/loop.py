"""The one training loop: precision, several processes, checkpoints, the log."""

import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.files import InputError
from data.loading import Loader, make_loader
from data.samples import Sample
from slidr import config, pictures
from slidr.tensor_files import write_tensors
from slidr.training import distributed
from slidr.training.checkpoint import Checkpoints
from slidr.training.learner import Learner, Step
from slidr.training.meter import Meter, format_row
from slidr.training.optimizers import make_optimizer, rate_factor
from slidr.training.run_folder import Run
from slidr.training.stopping import Stop, Stopped, Stuck
from triton_kernels import backend

LOG_EVERY = 10  # steps between rows of metrics.jsonl
LINE_EVERY = 15  # seconds between lines where stderr is no terminal; twice that before one comes within a step


def prepare(settings: config.Settings) -> torch.device:
    """Seed every generator, set the threads, choose the device, join the other processes if torchrun started several.

    Raises InputError if the device is not there.
    """
    seed_step(settings.seed, 0)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if isinstance(settings, config.WithPictures):
        pictures.set_output(settings.format, settings.dpi)
    name = getattr(settings, "device", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun gives each process of a machine its number
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"`device` cannot be {name!r}: it is auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"`device` cannot be {name!r}: the engine computes on cpu and cuda alone.")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise InputError(f"there is no {name} on this machine ({torch.cuda.device_count()} found); use --device cpu.")
    if getattr(settings, "deterministic", False):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        # on GPUs some operations know only one way: they say so, once each
        torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    if device.type == "cuda":
        if not backend.can_compute(device):
            raise InputError(f"{backend.describe(device)}; or use --device cpu.")
        torch.cuda.set_device(device)
    distributed.join(device)
    return device


def open_loader(sample: Sample, settings: config.WithRun, device: torch.device, batch: int, *, train: bool) -> Loader:
    """This process's batches of a sample: shuffled, and tolerant of unreadable frames as the settings say, to train."""
    return make_loader(
        sample,
        batch=batch,
        workers=settings.workers,
        seed=settings.seed,
        shuffle=train,
        max_bad_frames=settings.max_bad_frames if train else 0.0,
        pin=device.type == "cuda",
        rank=distributed.rank(),
        world=distributed.world(),
    )


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


def fit(
    run: Run,
    settings: config.WithTraining,
    learner: Learner,
    loader: Loader,
    validate: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """Train for `settings.epochs`, from the newest checkpoint if the run goes on.

    A step is accepted if its loss and the norm of its gradient, read together after the backward pass, are finite and
    the scaler of fp16 does not skip it. One that is not leaves the learner as it was. The loop waits for the device
    once a step (with fp16 twice).

    Args:
        run: where rows and checkpoints go.
        settings: epochs, optimiser, schedule, precision, checkpoints, how many bad steps are left out.
        learner: what is trained, on its device; all of its state_dict is in the checkpoints.
        loader: batches of the training split.
        validate: called with the number of finished epochs every `validate_every` of them and at the end; its figures
            are logged. The best one by `learner.best` leaves best.pt.

    Raises Diverged if more steps are bad than may be left out (each leaves a file to replay), InputError if the run was
    begun with other settings, data or processes, and Stopped after SIGTERM, SIGINT or SIGHUP, when a checkpoint is
    written.
    """
    optimizer = make_optimizer(settings, learner.parameter_groups())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device, base = parameters[0].device, [group["lr"] for group in optimizer.param_groups]
    steps, total = len(loader), settings.epochs * len(loader)
    if total == 0:
        raise InputError(f"the split `{settings.train_split}` has no batch to train on; lower --batch or add data.")
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    checkpoints = Checkpoints(run.folder / "checkpoints", settings.keep_checkpoints)
    begun_with = {"processes": distributed.world(), "scans": loader.items, **learner.identity()}
    state = {"step": 0, "bad_steps": 0, "best": None, "seconds": 0.0}

    def checkpoint_state() -> dict:
        return state | {
            "settings": config.identity_keys(settings),
            "begun_with": begun_with,
            "unread": sorted(loader.unread),
            "learner": learner.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }

    content = checkpoints.newest() if run.goes_on else None
    if content:
        try:
            _require_same_start(run, content["begun_with"], begun_with)
            state = {name: content[name] for name in state}
            if type(state["step"]) is not int or not 0 <= state["step"] <= total:
                raise ValueError("its step is none of this run")
            learner.load_state_dict(content["learner"])
            optimizer.load_state_dict(content["optimizer"])
            scaler.load_state_dict(content["scaler"])
            loader.unread.update(content["unread"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"the newest checkpoint of {run.folder} is none of this run ({str(error).splitlines()[0]}); remove it."
            ) from error
    if run.goes_on:
        print(f"  goes on after step {state['step']} of {total}", flush=True)
    run.log_from(state["step"])

    objective = distributed.data_parallel(learner, device, settings.sync_batch_norm)
    statistics = list(distributed.running_statistics(learner).values())
    before_step = [value.clone() for value in statistics]
    meter, saved = Meter(), time.monotonic()
    watched = run.first and sys.stderr.isatty()
    bar = tqdm(total=total, initial=state["step"], desc=run.stage, unit="step", disable=not watched)
    stop = Stop()

    def take_step(batch) -> tuple[dict[str, float] | None, bool]:
        """(numbers of the step, or None if it was left out; whether to stop after it)"""
        seed_step(settings.seed, state["step"])
        _copy(before_step, statistics)
        optimizer.zero_grad(set_to_none=True)
        with autocast(settings, device):
            step = objective(batch.to(device))
        scaler.scale(step.loss).backward()
        scaler.unscale_(optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        loss, norm, numbers = _read(step, torch.nn.utils.get_total_norm(gradients))
        mean, bad_loss, bad_norm, stopped = sync_status(loss, norm, stop)
        skipped = scaler.is_enabled() and bad_norm and not bad_loss  # the scale was too large: no fault of the step
        if bad_loss or (bad_norm and not skipped):
            state["bad_steps"] += 1
            _copy(statistics, before_step)
            what = f"the loss of step {state['step']} is {mean}, the norm of its gradient {norm}"
            _leave_out(run, settings, what, checkpoint_state() | {"ids": batch.ids})
        elif skipped:
            _copy(statistics, before_step)
            scaler.step(optimizer)  # lowers the scale, moves nothing
        else:
            if 0 < settings.clip_gradients < norm:
                torch._foreach_mul_(gradients, settings.clip_gradients / norm)
            scaler.step(optimizer)
        if scaler.is_enabled():
            scaler.update()
        state["step"] += 1
        if bad_loss or bad_norm:
            return None, stopped
        with torch.no_grad():
            learner.after_step(step, state["step"] / total)
        row = {"loss": mean, "gradient_norm": norm, "lr": optimizer.param_groups[0]["lr"], **numbers}
        return row, stopped

    def say(epoch: int, row: dict[str, float]) -> None:
        """Where training stands, for a person."""
        bar.set_postfix_str(format_row(row), refresh=False)
        if bar.disable and meter.line_due(0 if state["step"] == total else LINE_EVERY):
            left = tqdm.format_interval((total - state["step"]) * meter.seconds_a_step())
            where = f"epoch {epoch + 1}/{settings.epochs}  step {state['step']}/{total}"
            print(f"{run.stage}: {where}  {format_row(row)}  {left} left", flush=True)

    def validated(epoch: int) -> bool:
        """Whether the learner is the best so far."""
        found = validate(epoch + 1)
        run.log(state["step"], epoch=epoch, **found)
        shown = {name: value for name, value in found.items() if "/" not in name}
        tqdm.write(f"{run.stage}: epoch {epoch + 1}/{settings.epochs}  {format_row(shown)}")
        if learner.best is None:
            return False
        name, direction = learner.best
        value, best = found[name], state["best"]
        better = math.isfinite(value) and (best is None or (value > best if direction == "max" else value < best))
        state["best"] = value if better else best
        return better

    def save(best: bool = False) -> None:
        nonlocal saved
        state["seconds"] += time.monotonic() - saved
        saved = time.monotonic()
        if run.first:
            _require_finite(learner, state["step"])
            with run.tolerate("a checkpoint"):
                checkpoints.save(checkpoint_state(), best)
            if best:
                with run.tolerate("best.pt"):
                    learner.write_model(run.folder / "best.pt")
        meter.lap()

    def how_to_go_on(where: str = "") -> str:
        return (
            f"stopped by {stop.signal or 'a signal'} after step {state['step']} of {total}{where}; the same command "
            f"with --resume --name {run.folder.name} goes on."
        )

    with stop, _heartbeat(run.stage, meter, state, total, enabled=run.first and bar.disable):
        try:
            for epoch in range(state["step"] // steps, settings.epochs):
                loader.set_epoch(epoch, skip=state["step"] % steps)
                learner.train()
                meter.lap()
                for batch in loader:
                    for group, lr in zip(optimizer.param_groups, base, strict=True):
                        group["lr"] = lr * rate_factor(settings, state["step"], steps)
                    meter.data_arrived()
                    row, stopped = take_step(batch)
                    meter.step_done(batch)
                    bar.update()
                    step = state["step"]
                    if row and (step % LOG_EVERY == 0 or step in (1, total)):
                        row |= meter.read(device) | ({"redrawn": loader.redrawn} if loader.redrawn else {})
                        run.log(step, epoch=epoch, **row)
                    if row:
                        say(epoch, row)
                    due = (epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs
                    best = bool(validate) and due and step == (epoch + 1) * steps and validated(epoch)
                    if stopped or best or step == total or time.monotonic() - saved >= 60 * settings.checkpoint_minutes:
                        save(best)
                    if stopped and step < total:
                        raise Stopped(how_to_go_on())
        except Stuck:
            save()
            raise Stopped(how_to_go_on(", while data did not come")) from None
    bar.close()
    run.seconds = state["seconds"]


@contextmanager
def _heartbeat(stage: str, meter: Meter, state: dict, total: int, *, enabled: bool) -> Iterator[None]:
    """While entered, a line comes in time even if a single step or validation takes minutes."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(1):
            if meter.line_due(every=2 * LINE_EVERY):
                print(f"{stage}: after step {state['step']} of {total}, still at work", flush=True)

    if enabled:
        threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _copy(to: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, values)  # in one launch


def _read(step: Step, norm: torch.Tensor) -> tuple[float, float, dict[str, float]]:
    """Loss, norm of the gradient and the step's numbers, in one wait for the device."""
    on_device = {name: value for name, value in step.numbers.items() if isinstance(value, torch.Tensor)}
    values = [value.detach().double() for value in (step.loss, norm, *on_device.values())]
    loss, norm, *read = torch.stack(values).tolist()
    return loss, norm, step.numbers | dict(zip(on_device, read, strict=True))


def sync_status(loss: float, norm: float, stop: Stop) -> tuple[float, bool, bool, bool]:
    """What all processes agree on: (mean loss, or this one's if one of them is not finite, whether a loss is not
    finite, whether a gradient is not, whether a process was asked to stop)."""
    finite = math.isfinite(loss)
    own = [loss if finite else 0.0, not finite, not math.isfinite(norm), stop.signal is not None]
    mean, *flags = distributed.total(torch.tensor(own, dtype=torch.float64)).tolist()
    bad_loss, bad_norm, stopped = (flag > 0 for flag in flags)
    return (loss if bad_loss else mean / distributed.world()), bad_loss, bad_norm, stopped


def _require_same_start(run: Run, begun: dict, now: dict) -> None:
    """Raises InputError, with what differs, if a run was begun with other processes, data or, say, teacher."""
    for name, value in now.items():
        if begun.get(name) != value:
            raise InputError(
                f"{run.folder} was begun with {name} {begun.get(name)}, now there is {value}: the run would not be the "
                "same; restore what there was, or start a new run with another --name."
            )


class Diverged(InputError):
    """More steps were bad than may be left out."""


def _leave_out(run: Run, settings: config.WithTraining, what: str, content: dict) -> None:
    """Keep what a bad step needs to be looked at again. Raises Diverged if there were too many of them."""
    step, left_out = content["step"], content["bad_steps"]
    path = run.folder / f"nonfinite-{step:09d}.pt"
    if run.first:
        with run.tolerate(path.name):
            write_tensors(path, content)
    what = f"{what} (frames {', '.join(content['ids'])})"
    if left_out > settings.max_bad_steps:
        raise Diverged(
            f"{what}, bad step number {left_out}; `run.py pretrain --replay {path}` looks at it again; then lower "
            "--lr, or leave these frames out."
        )
    tqdm.write(f"{run.stage}: {what}; it is left out, and kept in {path}", file=sys.stderr)


def _require_finite(learner: nn.Module, step: int) -> None:
    for name, value in learner.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(
                f"after step {step} the weights `{name}` are no longer finite: lower --lr; the last checkpoint is "
                "from before."
            )
