"""What every benchmark writes: a JSON row under benchmarks/results/ that says when and on what it was measured."""

import datetime
import json
import os
import platform
from pathlib import Path

import torch

from data.files import atomic_write


def processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: str | torch.device = "cpu") -> str:
    """The GPU's name, or the processor's; of "auto" the one that a run takes."""
    on_gpu = str(device).startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return torch.cuda.get_device_name() if on_gpu else processor()


def path_of(name: str) -> Path:
    """Where the row of a benchmark lies, in the working folder."""
    return Path("benchmarks/results") / f"{name}.json"


def known_rows(name: str, asked: dict) -> list[dict]:
    """The rows of a benchmark that are there already, if they were measured as it is `asked` for."""
    path = path_of(name)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found.get("rows", []) if asked.items() <= found.items() else []


def write(name: str, numbers: dict, device: str | torch.device = "cpu") -> None:
    """Write benchmarks/results/<name>.json, in the working folder, and say so.

    Args:
        name: of the benchmark.
        numbers: what was measured, and how it was asked for.
        device: that was measured.
    """
    row = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(row | numbers, indent=1) + "\n")
    print(f"\nwritten: {path}")
