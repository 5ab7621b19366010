"""Features, or classes, of anybody's scans."""

import hashlib
import json
from pathlib import Path

import numpy as np

from data.files import InputError, atomic_write, read_json, write_text
from data.point_files import find_scans, read_scan
from data.progress import Progress
from slidr import inference
from slidr.config import Features
from slidr.networks.model_file import newest_model
from slidr.training import prepare

ENDINGS = ".head.npy", ".backbone.npy", ".classes.npy"  # of what this stage writes


def run(settings: Features) -> list[Path]:
    """A .npy file for each scan, a row for each of its points: float16 features, or uint8 train ids.

    A point that no lidar measures has NaN, or class 0 (`data.frame.measured`).

    What is there is not computed again, provided that made_by.<kind>.json beside it names the same model and settings.
    """
    device = prepare(settings)
    stages = ("linprobe", "fewshot") if settings.kind == "classes" else ("pretrain",)
    path = Path(settings.weights) if settings.weights else newest_model(Path("output"), *stages)
    if path is None:
        raise InputError(f"there is no model.pt under output/{' or output/'.join(stages)}; pass --weights FILE.")
    network = inference.load(path, device)
    targets = {}  # where -> of which scan
    for scan, inside in find_scans(tuple(map(Path, settings.scans)), but=ENDINGS):
        target = (settings.output / inside if settings.output else scan).with_name(f"{scan.name}.{settings.kind}.npy")
        if target in targets and targets[target] != scan:
            raise InputError(f"{scan} and {targets[target]} would both be written to {target}; compute one at a time.")
        targets[target] = scan
    made_by = {name: settings.model_dump(mode="json")[name] for name in ("columns", "intensity_scale")}
    made_by["model"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for folder in {target.parent for target in targets}:
        _require_same(folder / f"made_by.{settings.kind}.json", made_by, [t for t in targets if t.parent == folder])

    missing = {target: scan for target, scan in targets.items() if not target.exists()}
    points = 0
    for target, scan in Progress(missing.items(), desc="scans", delay=1):
        cloud = read_scan(scan, settings.columns, settings.intensity_scale)
        if settings.kind == "classes":
            values = network(cloud, head=True).cpu().numpy().astype(np.uint8)
        else:
            values = network(cloud, features=settings.kind).cpu().numpy().astype(np.float16)
        with atomic_write(target) as temporary, open(temporary, "wb") as file:
            np.save(file, values)
        points += len(cloud)
    kind = "train ids (uint8)" if settings.kind == "classes" else f"{settings.kind} features (float16)"
    print(
        f"features: {kind} of {len(missing)} scans, {points:,} points, by {path}; "
        f"{len(targets) - len(missing)} were there; e.g. {next(iter(targets))}"
    )
    return list(targets)


def _require_same(record: Path, made_by: dict, targets: list[Path]) -> None:
    """Write what makes a folder's files, unless it is there; InputError if others of `targets` are there."""
    found = read_json(record) if record.exists() else None
    if found == made_by:
        return
    if there := [target for target in targets if target.exists()]:
        raise InputError(
            f"{there[0]} was made by another model or with other settings (see {record.name} beside it); remove "
            "it, or choose another --output."
        )
    write_text(record, json.dumps(made_by, indent=1) + "\n")
