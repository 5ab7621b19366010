"""The data sets by name. A new one is one file with a `DataSet` record, and one line here."""

from pathlib import Path

from data.datasets.dataset import OFFICIAL, DataSet, Reader, ReadOptions, named_object
from data.files import InputError, require_folder

DATASETS = {
    "synthetic": "data.datasets.synthetic:RECORD",
    "nuscenes": "data.datasets.nuscenes:RECORD",
    "kitti": "data.datasets.semantic_kitti:RECORD",
    "kitti_object": "data.datasets.kitti_object:RECORD",
}


def find_dataset(name: str) -> DataSet:
    """The record of a data set by its name, or by `package.module:RECORD`; InputError if there is none."""
    record = named_object(name, DATASETS, "data set")
    if not isinstance(record, DataSet):
        raise InputError(f"`{name}` is no data.datasets.dataset.DataSet record.")
    return record


def open_reader(dataset: DataSet | str, root: Path | None, split: str, options: ReadOptions | None = None) -> Reader:
    """The reader of one split of a data set; the built-in world is written first if it is not there.

    Args:
        dataset: its record or name.
        root: its folder; None = the record's own.
        split: a split's name.
        options: where own data differ from the official layout.

    Raises InputError if the data set or the split is not there.
    """
    record = find_dataset(dataset) if isinstance(dataset, str) else dataset
    root = root or record.root
    if record.prepare:
        record.prepare(root)
    remedy = (
        f"{record.how_to_get} and link it there or pass --root FOLDER, "
        "or use --dataset synthetic, which runs on built-in data."
    )
    return record.open(require_folder(root, f"{record.name} data set", remedy), split, options or OFFICIAL)
