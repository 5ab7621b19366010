"""A small world that is written to disk in the official layouts and then read by their ordinary readers."""

import os
from dataclasses import replace
from pathlib import Path

from data.datasets import nuscenes
from data.datasets.dataset import DataSet, ReadOptions
from data.datasets.synthetic.sensors import FILM, VERSION, FilmWorld, SyntheticWorld
from data.datasets.synthetic.write import has_annotations, write_film, write_kitti, write_kitti_object, write_nuscenes
from data.files import read_json

__all__ = [
    "FILM",
    "RECORD",
    "VERSION",
    "SyntheticWorld",
    "write_film",
    "write_kitti",
    "write_kitti_object",
    "write_nuscenes",
]


def _prepare(root: Path) -> None:
    """Write the world in the nuScenes layout, unless it is there; give one of an earlier version its boxes."""
    folder = root / "nuscenes"
    if not (folder / VERSION).is_dir():
        write_nuscenes(folder, SyntheticWorld(), workers=os.cpu_count() or 1)
    elif not has_annotations(folder):
        write_nuscenes(folder, SyntheticWorld(**read_json(folder / "world.json")))


def _open(root: Path, split: str, options: ReadOptions) -> nuscenes.NuScenes:
    if split != FILM:
        return nuscenes.NuScenes(root / "nuscenes", split, options, dataset=RECORD)
    write_film(root, workers=os.cpu_count() or 1)
    options = replace(options, cameras=options.cameras or tuple(FilmWorld.cameras))
    return nuscenes.NuScenes(root / FILM, split, options, dataset=RECORD)


RECORD = DataSet(
    name="synthetic",
    table=nuscenes.RECORD.table,
    boxes=nuscenes.BOXES,
    splits={},  # worlds differ in size: train and val are in the splits.json of each
    open=_open,
    root=Path("datasets/synthetic"),
    how_to_get="write it with `python run.py synth`",
    categories=nuscenes.RECORD.categories,
    submission=nuscenes.NuScenesSubmission,
    detection_submission=nuscenes.NuScenesDetectionSubmission,
    prepare=_prepare,
)
