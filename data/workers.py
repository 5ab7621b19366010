"""Worker processes whose errors, and whose deaths, reach the user as one sentence."""

import multiprocessing
import re
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader, get_worker_info

from data.files import InputError


def results(loader: DataLoader) -> Iterator:
    """What the loader's workers made, in order.

    Raises InputError for the first one that is an InputError (workers return theirs: an exception would arrive as a
    traceback's text), and for a worker that dies.
    """
    with dead_workers_named():
        try:
            for result in _timed(loader):
                if isinstance(result, InputError):
                    raise InputError(*result.args)  # not itself: its traceback would hold this frame, and so on
                yield result
        except (ConnectionError, EOFError):
            time.sleep(5)  # a worker died while handing a batch over; the signal that says of what is on its way
            raise


_waiting_since: list[float] = []


def waited() -> float:
    """Seconds for which this process has been waiting for its next batch; 0 if it is not."""
    return time.monotonic() - _waiting_since[-1] if _waiting_since else 0.0


def _timed(loader: DataLoader) -> Iterator:
    """What the loader gives; `waited` tells how long it takes."""
    results, end = None, object()
    while True:
        _waiting_since.append(time.monotonic())
        try:
            results = iter(loader) if results is None else results  # which starts the workers
            result = next(results, end)
        finally:
            _waiting_since.pop()
        if result is end:
            return
        yield result


def end_workers() -> None:
    """Kill the workers that there still are: they ignore what a scheduler sends, and one that is stuck hears nothing.

    For the end of a program, which would wait for them.
    """
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes it for a fault when one of them dies
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(5)
    signal.signal(signal.SIGCHLD, before)


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turns the death of a worker into InputError. A signal tells of it, so that whatever runs just then raises it."""
    try:
        yield
    except RuntimeError as error:
        if re.search("open files|ancdata", f"{error} {error.__cause__}"):
            raise InputError(FEW_FILES) from error
        if not str(error).startswith("DataLoader worker"):
            raise
        killer = re.search(r"killed by signal: ([\w ]+)", f"{error} {error.__cause__}")
        cause = killer[1] if killer else "it exited"
        remedy = _REMEDIES.get(cause, "set --workers 0 to see what it dies of")
        raise InputError(f"a process that prepares data died ({cause}): {remedy}.") from error


def leave_signals(worker: int) -> None:
    """Leave signals that reach the whole process group to the training process: it stops its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def require_files(workers: int) -> None:
    """Raise InputError if so many workers need more open files than this process may have.

    Each tensor of the batches on their way is one; a worker that cannot open it loses its batch without a word.
    """
    if workers and resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 32 * (workers + 1):
        raise InputError(FEW_FILES)


def handed_over(batch):
    """The batch in memory that the training process sees. Raises InputError if there is too little of it.

    Left to torch, a full /dev/shm stops the worker's outgoing thread, and training waits for ever.
    """
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory_()
    except RuntimeError as error:
        raise InputError(f"a process cannot hand over its data ({error}): {_REMEDIES['Bus error']}.") from error


FEW_FILES = "this process may open too few files at once: raise the limit (`ulimit -n 4096`) or lower --workers."
LESS_MEMORY = "lower --workers or --batch"
_REMEDIES = {
    "Killed": f"the machine probably ran out of memory; {LESS_MEMORY}",
    "Bus error": f"shared memory is full; {LESS_MEMORY}, or enlarge /dev/shm (docker run --shm-size=8g)",
}
