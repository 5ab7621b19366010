"""How fast training goes, and its numbers as a person reads them."""

import resource
import time

import torch

from slidr.training import distributed


class Meter:
    """Seconds and scans since the last reading, and since the beginning."""

    def __init__(self) -> None:
        self.steps, self.seconds, self._line = 0, 0.0, time.monotonic()
        self._clear()
        self.lap()

    def _clear(self) -> None:
        self.counts, self.waited, self.computed = {}, 0.0, 0.0

    def lap(self) -> None:
        self._last = time.perf_counter()

    def data_arrived(self) -> None:
        self._arrived = time.perf_counter()
        self.waited += self._arrived - self._last

    def step_done(self, batch) -> None:
        for name, count in batch.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count * distributed.world()
        self._last, arrived = time.perf_counter(), self._arrived
        self.computed += self._last - arrived
        self.steps += 1

    def read(self, device: torch.device) -> dict[str, float]:
        """Speed since the last row, and the run's peak of memory."""
        seconds = self.waited + self.computed
        row = {f"{name}_per_second": count / seconds for name, count in self.counts.items() if count}
        row["waiting_for_data"] = self.waited / seconds
        peak = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        row["peak_memory_gib"] = peak / 2**30
        self.seconds += seconds
        self._clear()
        return row

    def line_due(self, every: float) -> bool:
        """Whether so many seconds have passed since a line was due."""
        due = time.monotonic() - self._line >= every
        self._line = time.monotonic() if due else self._line
        return due

    def seconds_a_step(self) -> float:
        return (self.seconds + self.waited + self.computed) / self.steps


def format_row(row: dict[str, float]) -> str:
    """Numbers for a person: integers in full, others with four digits."""
    texts = {name: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for name, value in row.items()}
    return "  ".join(f"{name.replace('_', ' ')} {text}" for name, text in texts.items())
