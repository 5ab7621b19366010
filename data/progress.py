"""Progress bars, which become plain lines where nobody watches a terminal."""

import sys

from tqdm import tqdm


class Progress(tqdm):
    """tqdm; where stderr is no terminal, a line at most every 15 seconds, and one at the end."""

    def __init__(self, *args: object, **kwargs: object):
        self.plain = not sys.stderr.isatty()
        if self.plain:
            kwargs |= {"mininterval": 15, "bar_format": "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """What tqdm calls to show where it stands."""
        if not self.plain:
            return super().display(msg, pos)
        if self.n:
            print(self, file=sys.stderr)

    def close(self) -> None:
        """The last line."""
        if self.plain and not self.disable:
            self.display()
            self.disable = True  # tqdm's own close would add an empty line
        super().close()
