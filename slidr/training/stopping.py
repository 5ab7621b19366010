"""Runs that are stopped from outside: by a signal, or by the death of another process."""

import signal
from types import FrameType

EXIT_CODE = 75  # sysexits.h, EX_TEMPFAIL: a scheduler may start the same command again


class Stopped(Exception):
    """The run was stopped and can go on. The message is one sentence (run.py exits with EXIT_CODE)."""


class Stop:
    """While entered: SIGTERM and SIGINT are noted in `signal` and do no more. A second SIGINT ends the program."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
