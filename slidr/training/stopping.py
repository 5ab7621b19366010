"""Runs that are stopped from outside: by a signal, or by the death of another process."""

import signal
from types import FrameType

from data.workers import waited

EXIT_CODE = 75  # sysexits.h, EX_TEMPFAIL: a scheduler may start the same command again
PATIENCE = 5  # seconds that data may take to come, once the run has been asked to stop


class Stopped(Exception):
    """The run was stopped and can go on. The message is one sentence (run.py exits with EXIT_CODE)."""


class Finished(Exception):
    """The run has been at its end before. The message is one sentence (run.py exits with 0)."""


class Stuck(BaseException):
    """The run was asked to stop while it waited for data that did not come. No Exception: no reader may handle it."""


class Stop:
    """While entered: SIGTERM, SIGINT and SIGHUP are noted in `signal` and do no more. A second SIGINT ends the program.

    If data do not come within PATIENCE then, a reader is stuck (in a dead network share, say), and waiting for it ends
    with Stuck.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def __enter__(self) -> "Stop":
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._note)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
            del handlers[signal.SIGHUP]
        handlers[signal.SIGALRM] = self._look
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 1, 1)

    def _look(self, number: int, frame: FrameType | None) -> None:
        if waited() > PATIENCE:
            raise Stuck
