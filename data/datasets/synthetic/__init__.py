"""A small world that is written to disk in the official layouts and then read by their ordinary readers."""

import os
from dataclasses import replace
from pathlib import Path

from data.datasets import nuscenes
from data.datasets.dataset import DataSet, ReadOptions
from data.datasets.synthetic.write import (
    FILM,
    VERSION,
    FilmWorld,
    SyntheticWorld,
    write_film,
    write_kitti,
    write_nuscenes,
)

__all__ = ["FILM", "RECORD", "VERSION", "SyntheticWorld", "write_film", "write_kitti", "write_nuscenes"]


def _prepare(root: Path) -> None:
    """Write the world in the nuScenes layout, unless it is there."""
    if not (root / "nuscenes" / VERSION).is_dir():
        write_nuscenes(root / "nuscenes", SyntheticWorld(), workers=os.cpu_count() or 1)


def _open(root: Path, split: str, options: ReadOptions) -> nuscenes.NuScenes:
    if split != FILM:
        return nuscenes.NuScenes(root / "nuscenes", split, options, dataset=RECORD)
    write_film(root, workers=os.cpu_count() or 1)
    options = replace(options, cameras=options.cameras or tuple(FilmWorld.cameras))
    return nuscenes.NuScenes(root / FILM, split, options, dataset=RECORD)


RECORD = DataSet(
    name="synthetic",
    table=nuscenes.RECORD.table,
    splits={},  # worlds differ in size: train and val are in the splits.json of each
    open=_open,
    root=Path("datasets/synthetic"),
    how_to_get="write it with `python run.py synth`",
    categories=nuscenes.RECORD.categories,
    submission=nuscenes.NuScenesSubmission,
    prepare=_prepare,
)
