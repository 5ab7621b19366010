"""Checkpoints that can be trusted: written beside and renamed, with their checksum in their name."""

import hashlib
import re
import sys
from pathlib import Path

from data.files import atomic_write
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

    def save(self, content: dict, best: bool = False) -> Path:
        """Write one of `content["step"]` and remove those that need not stay. `best` = the best one so far.

        Raises InputError if it cannot be written; those already there stay as they are.
        """
        raw = packed(content)
        digest = hashlib.sha256(raw).hexdigest()[:16]
        path = self.folder / f"step-{content['step']:09d}{'-best' if best else ''}-{digest}.pt"
        with atomic_write(path) as temporary:
            temporary.write_bytes(raw)
        found = self._found()
        champion = next((f for f in found if NAME.fullmatch(f.name)[2]), None)
        for old in found[self.keep :]:
            if old != champion:
                old.unlink(missing_ok=True)
        for torn in self.folder.glob(".step-*"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)
        return path

    def newest(self) -> dict | None:
        """The content of the newest intact checkpoint (tensors on the CPU), None without one; damaged ones are named.

        Raises InputError if its checksum fits but it is no checkpoint: checksums guard against damage, not intent.
        """
        for path in self._found():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest[:16] == NAME.fullmatch(path.name)[3]:
                return read_tensors(path)
            print(f"{path} is damaged and left out: its checksum is another", file=sys.stderr)
        return None

    def _found(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self.folder.glob("step-*.pt") if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]), reverse=True)
