"""The folder in which a run leaves everything."""

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.disk import InputError, atomic_write
from slidr import config
from slidr.training import distributed


class Run:
    """`output/<stage>/<name>/`: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/, report.md, pictures.

    A run with report.md is finished; one without was cut off, and goes on where `settings.resume` is set. Of several
    processes the first one alone writes.

    Attributes:
        folder: of the run.
        first: whether this process writes.
        goes_on: whether the run was begun before.
        rows: everything logged so far.
        seconds: spent in training, in all its parts.

    Raises InputError if the folder cannot be written, holds another run, or another process is writing it.
    """

    def __init__(self, stage: str, settings: config.WithRun):
        self.stage, self.first = stage, distributed.rank() == 0
        self.rows: list[dict] = []
        self.seconds = 0.0
        resume = getattr(settings, "resume", True)  # without that key (evaluate) there is nothing to lose
        self._board, self._torn, self._told = None, False, set()
        chosen = ""
        if self.first:
            folder = _choose(settings.output / stage, settings, resume)
            self._lock = _lock(folder)
            begun = folder / "config.yaml"
            chosen = json.dumps([str(folder), begun.exists()])
            if begun.exists():
                require_same(folder, settings)
            else:
                with atomic_write(begun) as temporary:
                    temporary.write_text(config.to_yaml(settings.model_copy(update={"resume": False})))
        folder, self.goes_on = json.loads(distributed.first_says(chosen))
        self.folder = Path(folder)

    def start(self, **facts: object) -> None:
        """Print once, in one block, everything that was chosen."""
        width = max(map(len, facts))
        print(f"{self.stage} -> {self.folder}")
        for name, fact in facts.items():
            print(f"  {name.replace('_', ' '):<{width}}  {fact}", flush=True)

    def log_from(self, step: int) -> None:
        """Begin to log after `step`; what an interrupted run had logged after it is dropped."""
        path = self.folder / "metrics.jsonl"
        if not self.first:
            return
        self.rows = [row for row in map(_row, path.read_text().splitlines() if path.exists() else []) if row]
        self.rows = [row for row in self.rows if row["step"] <= step]
        self._write_rows()
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def log(self, step: int, **values: float) -> None:
        """One row of numbers at `step`. A full disk costs the row on disk, not the training."""
        row = {"step": step, **values}
        self.rows.append(row)
        if not self.first:
            return
        with self.spared("metrics.jsonl"), open(self.folder / "metrics.jsonl", "a") as file:
            self._torn = True
            file.write(json.dumps(row) + "\n")
            file.flush()
            self._torn = False
        with self.spared("TensorBoard events"):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    @contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """If `what` cannot be written inside, say so (once for each `what`) and go on."""
        try:
            yield
        except (OSError, InputError) as error:
            if what not in self._told:
                self._told.add(what)
                tqdm.write(f"{self.stage}: {what} cannot be written ({error}); the run goes on", file=sys.stderr)

    def finish(self, report: str) -> None:
        """Close the logs and write report.md, which makes the run a finished one."""
        if not self.first:
            return
        if self._torn:
            self._write_rows()
        if self._board:
            with self.spared("TensorBoard events"):
                self._board.close()
        with atomic_write(self.folder / "report.md") as temporary:
            temporary.write_text(report)
        (self.folder / "lock").unlink(missing_ok=True)
        self._lock.close()

    def _write_rows(self) -> None:
        with atomic_write(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))


def require_same(folder: Path, settings: config.WithRun) -> None:
    """Raises InputError, with the first key that differs, if the run in `folder` has other settings."""
    begun = config.read_yaml(folder / "config.yaml")
    for name, value in config.what_decides(settings).items():
        if begun.get(name) != value:
            raise InputError(
                f"{folder} holds a run with `{name}` {begun.get(name)}, this one has {value}; "
                "choose another --name, or the settings of that run."
            )


def _choose(parent: Path, settings: config.WithRun, resume: bool) -> Path:
    """The folder of a new run, or of the one that goes on."""
    name = settings.name
    if name is None:
        cut_off = _newest_cut_off(parent, settings)
        if cut_off and resume:
            return cut_off
        if cut_off:
            print(f"{cut_off} has the same settings and was cut off: --resume goes on with it; this is a new run")
        name = f"{settings.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name:
        raise InputError(f"`name` cannot be {name!r}: it names one folder inside {parent}.")
    folder = parent / name
    if (folder / "report.md").exists():
        raise InputError(f"{folder} already holds a finished run; choose another --name or remove that folder.")
    if (folder / "config.yaml").exists() and not resume:
        raise InputError(
            f"{folder} already holds a run, which was cut off: --resume goes on with it; or choose another --name."
        )
    return folder


def _newest_cut_off(parent: Path, settings: config.WithRun) -> Path | None:
    """The newest run with these settings that was begun, is not finished, and that nobody is writing."""
    begun = [path.parent for path in parent.glob("*/config.yaml") if not (path.parent / "report.md").exists()]
    for folder in sorted(begun, key=lambda folder: (folder / "config.yaml").stat().st_mtime, reverse=True):
        try:
            require_same(folder, settings)
            _lock(folder).close()
        except InputError:
            continue
        return folder
    return None


def _lock(folder: Path):
    """An open file, locked as long as it is open and this process lives. Raises InputError if another one has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+")
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror or error}; choose an --output that you can write to."
        ) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the loader's workers, who outlive us, would inherit a flock
    except (BlockingIOError, PermissionError):  # systems differ
        file.seek(0)
        raise InputError(
            f"{folder} is being written by another run ({file.read().strip() or 'unknown'}); choose another --name."
        ) from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _row(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # cut off in the middle
        return None
