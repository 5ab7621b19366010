"""The folder in which a run leaves everything."""

import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.files import InputError, open_file, printable, remove_torn, write_text
from data.images import read_image
from slidr import config
from slidr.training import distributed
from slidr.training.stopping import Finished


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

    Raises InputError if the folder cannot be written, holds another run, or another process is writing it, and Finished
    if it goes on with a run that is at its end.
    """

    def __init__(self, stage: str, settings: config.WithRun):
        self.stage, self.first = stage, distributed.rank() == 0
        self.rows: list[dict] = []
        self.seconds = 0.0
        self._settings = settings.model_dump(mode="json")
        resume = getattr(settings, "resume", True)  # without that key (evaluate) there is nothing to lose
        self._board, self._torn, self._tolerated = None, False, set()
        chosen = ""
        if self.first:
            folder = _choose(settings.output / stage, settings, resume)
            self._lock = _lock(folder)
            begun = folder / "config.yaml"
            chosen = json.dumps([str(folder), os.path.lexists(begun), (folder / "report.md").exists()])
            if os.path.lexists(begun):
                require_same(folder, settings)
                for torn in (folder, folder / "checkpoints"):
                    remove_torn(torn)
            else:
                write_text(begun, config.to_yaml(settings.model_copy(update={"resume": False})))
        folder, self.goes_on, finished = json.loads(distributed.from_first(chosen))
        self.folder = Path(folder)
        if finished:
            raise Finished(f"{folder} is finished, nothing is left to do; choose another --name for a new run.")

    def start(self, **facts: object) -> None:
        """Print once, in one block, everything that was chosen."""
        width = max(map(len, facts))
        print(f"{self.stage} -> {self.folder}")
        for name, fact in facts.items():
            print(f"  {name.replace('_', ' '):<{width}}  {printable(fact)}", flush=True)

    def log_from(self, step: int) -> None:
        """Begin to log after `step`; what an interrupted run had logged after it is dropped."""
        path = self.folder / "metrics.jsonl"
        if not self.first:
            return
        if os.path.lexists(path):
            with open_file(path, follow=False) as file:
                rows = [_row(line) for line in file]
            self.rows = [row for row in rows if row and row["step"] <= step]
            if None in rows[:-1]:  # the last one may have been cut off
                print(f"{path} has damaged lines, which are left out", file=sys.stderr)
        self._write_rows()
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        with self.tolerate("TensorBoard events"):
            lines = [f"    {name}: {value}" for name, value in self._settings.items()]  # indented: verbatim in Markdown
            self._board.add_text("settings", "\n".join(lines), step)

    def log(self, step: int, **values: float) -> None:
        """One row of numbers at `step`. A full disk costs the row on disk, not the training."""
        row = {"step": step, **values}
        self.rows.append(row)
        if not self.first:
            return
        with self.tolerate("metrics.jsonl"), open(self.folder / "metrics.jsonl", "a", opener=_no_link) as file:
            self._torn = True
            file.write(json.dumps(row) + "\n")
            file.flush()
            self._torn = False
        with self.tolerate("TensorBoard events"):
            for name, value in values.items():
                self._board.add_scalar(_tag(name), value, step)

    def show(self, step: int, *names: str) -> None:
        """Pictures of the folder, by name, in TensorBoard."""
        if not self.first:
            return
        with self.tolerate("TensorBoard events"):
            for name in names:
                self._board.add_image(Path(name).stem, read_image(self.folder / name), step, dataformats="HWC")

    @contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """If `what` cannot be written inside, say so (once for each `what`) and go on."""
        try:
            yield
        except (OSError, InputError) as error:
            if what not in self._tolerated:
                self._tolerated.add(what)
                tqdm.write(f"{self.stage}: {what} cannot be written ({error}); the run goes on", file=sys.stderr)

    def finish(self, report: str) -> None:
        """Close the logs and write report.md, which makes the run a finished one."""
        if not self.first:
            return
        if self._torn:
            self._write_rows()
        if self._board:
            with self.tolerate("TensorBoard events"):
                plain = {k: v for k, v in self._settings.items() if isinstance(v, bool | str | float | int)}
                last = {f"last/{k}": v for row in self.rows for k, v in row.items() if k not in ("step", "epoch")}
                self._board.add_hparams(plain, last, run_name=".")
                self._board.close()
        write_text(self.folder / "report.md", report)
        (self.folder / "lock").unlink(missing_ok=True)
        self._lock.close()

    def _write_rows(self) -> None:
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))


def _tag(name: str) -> str:
    """A number's name in TensorBoard, where what stands before a slash is a group."""
    if name.startswith("val_"):
        return name.replace("val_", "validation_" if "/" in name else "validation/", 1)
    means = "_per_second", "waiting_for_data", "peak_memory_gib"
    return f"{'speed' if name.endswith(means) else 'training'}/{name}"


def require_same(folder: Path, settings: config.WithRun, but: str = "") -> None:
    """Raises InputError, with the first key that differs (`but` apart), if the run in `folder` has other settings."""
    begun = config.read_yaml(folder / "config.yaml", follow=False)
    for name, value in config.identity_keys(settings).items():
        if name != but and begun.get(name) != value:
            raise InputError(
                f"{folder} holds a run with `{name}` {printable(begun.get(name), 200)}, this one has {value}; "
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
    folder = parent / name
    if (folder / "report.md").exists() and not getattr(settings, "resume", False):
        raise InputError(f"{folder} already holds a finished run; choose another --name or remove that folder.")
    if (folder / "config.yaml").exists() and not resume:
        raise InputError(
            f"{folder} already holds a run, which was cut off: --resume goes on with it; or choose another --name."
        )
    return folder


def _newest_cut_off(parent: Path, settings: config.WithRun, but: str = "") -> Path | None:
    """The newest unfinished run with these settings (`but` apart) that no process is writing."""
    begun = [path.parent for path in parent.glob("*/config.yaml") if not (path.parent / "report.md").exists()]
    for folder in sorted(begun, key=lambda folder: (folder / "config.yaml").lstat().st_mtime, reverse=True):
        try:
            require_same(folder, settings, but)
            _lock(folder).close()
        except InputError:
            continue
        return folder
    return None


def _lock(folder: Path):
    """An open file, locked as long as it is open and this process lives. Raises InputError if another one has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "r+", encoding="utf-8", errors="replace", opener=_no_link)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(
            f"cannot write {folder}: {getattr(error, 'strerror', None) or error}; choose an --output that you can "
            "write to, or remove what stands in its place."
        ) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the loader's workers, who outlive us, would inherit a flock
    except (BlockingIOError, PermissionError):  # systems differ
        file.seek(0)
        who = printable(file.read(200).strip()) or "unknown"
        raise InputError(f"{folder} is being written by another run ({who}); choose another --name.") from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _no_link(path: str, flags: int) -> int:
    """Opens a file of a run's folder, where links are not followed: somebody may have planted them."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _row(line: bytes) -> dict | None:
    """A line of metrics.jsonl: numbers by name, among them the step. None for anything else."""
    try:
        row = json.loads(line)
        numbers = all(name.isprintable() and isinstance(value, int | float) for name, value in row.items())
        return row if numbers and type(row["step"]) is int else None
    except (ValueError, RecursionError, AttributeError, KeyError):
        return None


def next_command(stage: str, settings: config.WithData, run: Path | None = None) -> str:
    """The command that goes on from here: the same data set, at the same place, with the weights of `run`, if any."""
    words = ["python", "run.py", stage]
    for name in ("dataset", "root", "cameras", "columns", "intensity_scale"):
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            words += [f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words + (["--weights", str(run / "model.pt")] if run else []))


def begun_settings(stage: str, settings: config.WithRun, but: str) -> dict:
    """The settings, as YAML has them, of the run that `settings` would go on with, whatever its key `but` is; else {}.

    So a run can keep what was chosen for it when it began: the newest weights of that time, say.
    """
    parent = settings.output / stage
    folder = parent / settings.name if settings.name else _newest_cut_off(parent, settings, but)
    begun = folder and folder / "config.yaml"
    return config.read_yaml(begun, follow=False) if begun and begun.exists() and settings.resume else {}
