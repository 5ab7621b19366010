"""Progress bars, which become plain lines where there is no terminal."""

import sys

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
