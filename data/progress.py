"""What is said while a run goes on: it must neither flood a log nor end the run."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm


class Progress(tqdm):
    """tqdm; where stderr is no terminal, a line at most every 15 seconds, and one at the end.

    What is done within `delay` seconds (tqdm's own) shows nothing at all.
    """

    def __init__(self, *args: object, **kwargs: object):
        self.plain, self._said = not sys.stderr.isatty(), 0
        if self.plain:
            kwargs |= {"mininterval": 15, "bar_format": "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """What tqdm calls to show where it stands."""
        if not self.plain:
            return super().display(msg, pos)
        if self.n != self._said:
            print(self, file=sys.stderr)
            self._said = self.n

    def close(self) -> None:
        """The last line."""
        if self.plain and not self.disable:
            if self._time() >= self.start_t + self.delay:
                self.display()
            self.disable = True  # tqdm's own close would add an empty line
        super().close()


class Lasting:
    """A text stream whose reader may go away (`| head -1`, a closed terminal): what is written then is dropped."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream or open(os.devnull, "w")  # None: it was closed before Python began
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # `?` for what the locale lacks, rather than the end of a run

    def write(self, text: str) -> int:
        """As of any text stream."""
        with self._outlived():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of any text stream."""
        with self._outlived():
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _outlived(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # it still holds, and flushes, old text
