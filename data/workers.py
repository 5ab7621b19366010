"""Worker processes whose errors, and whose deaths, reach the user as one sentence."""

import re
import signal
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
        for result in loader:
            if isinstance(result, InputError):
                raise InputError(*result.args)  # not `result` itself, whose traceback would hold this frame, and so on
            yield result


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turns the death of a worker into InputError. A signal tells of it, so that whatever runs just then raises it."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        killer = re.search(r"killed by signal: ([\w ]+)", f"{error} {error.__cause__}")
        cause = killer[1] if killer else "it exited"
        remedy = _REMEDIES.get(cause, "set --workers 0 to see what it dies of")
        raise InputError(f"a process that prepares data died ({cause}): {remedy}.") from error


def leave_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole process group, to the training process: it stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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


LESS_MEMORY = "lower --workers or --batch"
_REMEDIES = {
    "Killed": f"the machine probably ran out of memory; {LESS_MEMORY}",
    "Bus error": f"shared memory is full; {LESS_MEMORY}, or enlarge /dev/shm (docker run --shm-size=8g)",
}
