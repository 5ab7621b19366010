"""Checkpoints that can be trusted: written beside and renamed, with their checksum in their name."""

import hashlib
import re
import sys
import zipfile
from pathlib import Path

from data.files import InputError, atomic_write, open_file, printable
from slidr.tensor_files import packed, read_tensors

NAME = re.compile(r"step-(\d+)(-best)?-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The checkpoints of a run: `step-<step>[-best]-<first 16 digits of its SHA-256>.pt` in one folder.

    Args:
        folder: theirs alone.
        keep: how many of the newest stay, besides the best.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._damaged: set[Path] = set()

    def save(self, content: dict, best: bool = False) -> Path:
        """Write one of `content["step"]` and remove those that need not stay. `best` = the best one so far.

        Raises InputError if it cannot be written; those already there stay as they are.
        """
        raw = packed(content)
        digest = hashlib.sha256(raw).hexdigest()[:16]
        path = self.folder / f"step-{content['step']:09d}{'-best' if best else ''}-{digest}.pt"
        with atomic_write(path) as temporary:
            temporary.write_bytes(raw)
        found = [path, *(f for f in self._found() if f != path and f not in self._damaged)]
        champion = next((f for f in found if NAME.fullmatch(f.name)[2]), None)
        for old in found[self.keep :]:
            if old != champion:
                old.unlink(missing_ok=True)
        return path

    def newest(self) -> dict | None:
        """The content of the newest intact checkpoint (tensors on the CPU), None without one; others are named."""
        for path in self._found():
            try:
                with open_file(path, follow=False) as file:
                    if not zipfile.is_zipfile(file):  # known at once, however long the file is
                        raise InputError("it is no archive of tensors")
                    file.seek(0)
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest[:16] == NAME.fullmatch(path.name)[3]:
                    return read_tensors(path)
                reason = "its checksum is another"
            except (OSError, InputError) as error:
                reason = printable(error, 200)
            self._damaged.add(path)  # it counts no more: else it would drive out those that are written from now on
            print(f"{path} is damaged and left out: {reason}", file=sys.stderr)
        return None

    def _found(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self.folder.glob("step-*.pt") if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]), reverse=True)
