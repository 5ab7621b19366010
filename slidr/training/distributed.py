"""Several processes of one run, started by torchrun, joined by PyTorch's own engine. Alone, all of this is nothing."""

import atexit
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from slidr.training.stopping import Stopped


def join(device: torch.device) -> None:
    """Join the other processes, if torchrun started several: gloo between CPUs, nccl between GPUs.

    Only the first process prints from here on; errors are everybody's.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    store, own, processes = next(distributed.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=unused(store, own, processes), rank=own, world_size=processes)
    atexit.register(distributed.destroy_process_group)
    if rank():
        sys.stdout = open(os.devnull, "w")


def unused(store: distributed.Store, own: int, processes: int) -> distributed.Store:
    """A part of `store` that all `processes` agree on and nobody has used; `own` is this process's number.

    torchrun restarts processes on one and the same store, in which the addresses of the dead still stand (PyTorch
    issue 135712). How often it did is no name to agree on: each machine counts its own. So the first process makes a
    name up and tells it only to those who ask now, under a word that each of them makes up: what earlier ones left is
    answered too, and nobody hears it.

    Raises TimeoutError if some process does not ask within the store's timeout.
    """
    word, limit = uuid.uuid4().hex, time.monotonic() + store.timeout.total_seconds()
    if own:
        store.set(f"question of {own}", word)
        name = store.get(f"answer to {word}").decode()
        store.set(f"{name} heard by {own}", "")
        return distributed.PrefixStore(name, store)
    silent = set(range(1, processes))
    while silent:
        for other in silent.copy():
            if store.check([f"question of {other}"]):
                store.set(f"answer to {store.get(f'question of {other}').decode()}", word)
            if store.check([f"{word} heard by {other}"]):
                silent.remove(other)
        if time.monotonic() > limit:
            raise TimeoutError(f"processes {sorted(silent)} of {processes} have not come within {store.timeout}")
        time.sleep(0.01)
    return distributed.PrefixStore(word, store)


def rank() -> int:
    """Which process this is, from 0; the first one alone writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, each with a tensor of the same shape (not differentiable)."""
    if world() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def first_says(text: str) -> str:
    """The first process's text, in all of them."""
    if world() == 1:
        return text
    length = torch.tensor([len(text.encode())])
    distributed.broadcast(length, 0)
    content = torch.tensor(list(text.encode().ljust(int(length))), dtype=torch.uint8)[: int(length)]
    distributed.broadcast(content, 0)
    return bytes(content.tolist()).decode()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process does what stands inside (writes, downloads), then the others do, and find it done."""
    if world() > 1 and rank():
        distributed.barrier()
    yield
    if world() > 1 and rank() == 0:
        distributed.barrier()


def share(rows: int) -> float:
    """What makes the mean over the processes of `share * (mean over a process's rows)` the mean over all rows."""
    return rows * world() / max(float(total(torch.tensor(float(rows)))), 1.0)


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """This process's rows `[n, C]`, then those of all others (their numbers may differ); differentiable."""
    return _Gathered.apply(rows) if world() > 1 else rows


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
        distributed.all_gather(counts, torch.tensor([len(rows)]))
        ctx.counts = [int(count) for count in counts]
        padded = rows.new_zeros(max(ctx.counts), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        distributed.all_gather(parts, padded)
        others = [part[:count] for r, (part, count) in enumerate(zip(parts, ctx.counts, strict=True)) if r != rank()]
        return torch.cat([rows, *others])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        own = rank()
        order = [own, *(r for r in range(len(ctx.counts)) if r != own)]
        parts = grad.new_zeros(len(ctx.counts), max(ctx.counts), grad.shape[1])
        for r, part in zip(order, grad.split([ctx.counts[r] for r in order]), strict=True):
            parts[r, : ctx.counts[r]] = part
        distributed.all_reduce(parts)
        return parts[own, : ctx.counts[own]]


def data_parallel(trained: nn.Module, loss_of: Callable, device: torch.device, sync_batch_norm: bool) -> Callable:
    """`loss_of`, after which the gradients of `trained` are the mean over the processes (DistributedDataParallel).

    All processes begin with the first one's weights. `sync_batch_norm`: batch norm becomes one over all processes.
    """
    if world() == 1:
        return loss_of
    objective = DistributedDataParallel(_Objective(trained, loss_of), [device] if device.type == "cuda" else None)
    if sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(trained)  # afterwards: on CPUs, DDP refuses what only ours can do there
    return objective


class _Objective(nn.Module):
    def __init__(self, trained: nn.Module, loss_of: Callable):
        super().__init__()
        self.trained, self.loss_of = trained, loss_of

    def forward(self, batch):
        return self.loss_of(batch)


@contextmanager
def dead_processes_named() -> Iterator[None]:
    """Turns the death of another process into Stopped: what is sent to it, or awaited from it, fails at once."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not re.search(r"gloo|nccl|connection|process ?group", str(error), re.IGNORECASE):
            raise
        raise Stopped(
            f"process {rank()} of {world()} ends because another one died or is out of reach ({_first_line(error)}); "
            "start the same command with --resume (torchrun --max-restarts does so by itself)."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
