"""Several processes of one run, started by torchrun, joined by PyTorch's own engine. Alone, all of this is nothing."""

import atexit
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
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
    """A fresh part of `store`, the same one in all `processes`; `own` is this process's number.

    When torchrun restarts processes it hands them the same store, which still holds the addresses of the dead ones
    (PyTorch issue 135712). The number of restarts cannot serve as a name for a fresh part, because each machine counts
    its own. So every process posts a random question; the first process makes up a name and answers the questions that
    it sees. Questions left over from an earlier start are answered as well, but no process waits for those answers.

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


def objects(value: object) -> list:
    """The values of all processes in the order of their ranks, pickled on the way; alone, a list of this one."""
    found = [value] * world()
    if world() > 1:
        distributed.all_gather_object(found, value)
    return found


def from_first(text: str) -> str:
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


def gathered(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows `[n, C]` of all processes in the order of their ranks (their numbers may differ), differentiable.

    Returns them and the place of this process's first row.
    """
    return _Gathered.apply(rows) if world() > 1 else (rows, 0)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
        distributed.all_gather(counts, torch.tensor([len(rows)]))
        ctx.counts = [int(count) for count in counts]
        padded = rows.new_zeros(max(ctx.counts), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        distributed.all_gather(parts, padded)
        together = torch.cat([part[:count] for part, count in zip(parts, ctx.counts, strict=True)])
        return together, sum(ctx.counts[: rank()])

    @staticmethod
    def backward(ctx, grad: torch.Tensor, _first: None) -> torch.Tensor:
        grad = grad.contiguous().clone()
        distributed.all_reduce(grad)
        return grad.split(ctx.counts)[rank()]


def running_statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of a module's batch norms by name: what a forward pass in train mode changes."""
    norms = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return {f"{name}.{key}" if name else key: value for name, m in norms for key, value in m.named_buffers()}


def data_parallel(learner: nn.Module, device: torch.device, sync_batch_norm: bool) -> nn.Module:
    """The learner, after whose backward pass gradients are the mean over the processes (DistributedDataParallel).

    All processes begin with the first one's parameters and buffers. From then on DDP hands around running statistics
    only: queues are equal everywhere because they move by what was gathered. `sync_batch_norm`: batch norm becomes
    one over all processes.
    """
    if world() == 1:
        return learner
    for buffer in learner.buffers():
        distributed.broadcast(buffer, 0)
    others = {name for name, _ in learner.named_buffers()} - running_statistics(learner).keys()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learner, others)
    parallel = DistributedDataParallel(learner, [device] if device.type == "cuda" else None)
    if sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # afterwards: on CPUs, DDP refuses what only ours can do there
    return parallel


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
