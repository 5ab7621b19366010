"""Pretraining: a lidar network learns without labels, by the method of the settings."""

import math
from pathlib import Path

import torch

from data.datasets import find_dataset, open_reader
from data.loading import Loader
from slidr import config, pictures
from slidr.config import MethodSettings
from slidr.methods import Method, find_method
from slidr.report import counted
from slidr.training import (
    Run,
    arithmetic,
    autocast,
    distributed,
    fit,
    next_command,
    open_loader,
    prepare,
    read_replay,
    replay,
)
from slidr.training.loop import seed_step
from triton_kernels import backend


def run(settings: MethodSettings) -> Path:
    """Pretrain by the settings; the run's folder."""
    content = read_replay(settings.replay) if settings.replay else None
    if content:
        settings = config.validate(type(settings), settings.model_dump() | content["settings"])
    device = prepare(settings)

    dataset = find_dataset(settings.dataset)
    splits = settings.train_split, settings.val_split
    with distributed.first_goes_first():  # the first process alone writes the built-in world, and downloads
        readers = [open_reader(dataset, settings.root, split, settings.read_options()) for split in splits]
    with distributed.first_goes_first():
        method = find_method(settings.method)(settings, dataset).to(device)
    loader, val_loader = (
        open_loader(method.sample(reader, train), settings, device, settings.batch, train=train)
        for reader, train in zip(readers, (True, False), strict=True)
    )
    if content:
        print("\n".join(replay(content, loader, method, device)))
        return settings.replay

    log = Run("pretrain", settings)
    log.start(
        method=settings.method,
        data=f"{settings.dataset}: {counted(len(readers[0]), 'frame')} to train on, {len(readers[1])} to validate on",
        **method.describe(),
        engine=backend.describe(device),
        arithmetic=arithmetic(settings, device),
    )

    def validate(epoch: int) -> dict[str, float]:
        loss = validation_loss(method, val_loader, settings, device)
        if log.first:
            with log.tolerate("model.pt"):
                method.write_model(log.folder / "model.pt")
            with log.tolerate("a picture"):  # the last epoch's are those of the report
                if epoch < settings.epochs:
                    log.show(epoch * len(loader), *method.watch(readers[1], log.folder, f"_epoch_{epoch:03d}"))
        return {"val_loss": loss}

    fit(log, settings, method, loader, validate)
    if log.first:
        method.write_model(log.folder / "model.pt")
        drawn = method.watch(readers[1], log.folder)
        log.show(settings.epochs * len(loader), *drawn)
        report(log, drawn, settings)
    return log.folder


@torch.no_grad()
def validation_loss(method: Method, loader: Loader, settings: MethodSettings, device: torch.device) -> float:
    """Mean loss over the batches of a split, those of all processes; the same number every time it is asked for."""
    method.eval()
    seed_step(settings.seed, 0)  # of a method that draws from its batch
    losses = torch.zeros(2, dtype=torch.float64)
    for batch in loader:
        with autocast(settings, device):
            losses += torch.tensor([float(method(batch.to(device)).loss), 1.0])
    loss, batches = distributed.total(losses).tolist()
    return loss / batches


def report(log: Run, drawn: list[str], settings: MethodSettings) -> None:
    """Draw the curves, write report.md, say what comes next."""
    pictures.curves(log.rows, log.folder / "curves.png")
    drawn = ["curves.png", *drawn, *sorted(path.name for path in log.folder.glob("*_epoch_*.png"))]
    losses = [row["loss"] for row in log.rows if "loss" in row]
    change = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else "every step was left out"
    validation = next((row["val_loss"] for row in reversed(log.rows) if "val_loss" in row), math.nan)
    log.finish(
        f"# Pretraining {log.folder.name}\n\n"
        f"Method {settings.method} on {settings.dataset}. Training {change}, validation loss {validation:.3f}, "
        f"{log.seconds:.0f} s.\n\n"
        f"Again: `python run.py pretrain {log.folder / 'config.yaml'} --name NEW`\n\n"
        + "\n".join(f"![{name}]({name})" for name in drawn)
        + "\n"
    )
    print(f"pretrain: {change}; {log.folder / 'report.md'}; next: {next_command('linprobe', settings, log.folder)}")
