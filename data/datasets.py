"""One door to every data set: its name -> its Reader."""

import os
from pathlib import Path

from data.disk import require_folder
from data.frame import Reader
from data.nuscenes import NuScenes
from data.semantic_kitti import SemanticKitti
from data.synthetic import VERSION, SyntheticWorld, write_nuscenes

DEFAULT_ROOTS = {
    "synthetic": Path("datasets/synthetic"),
    "nuscenes": Path("datasets/nuscenes"),
    "kitti": Path("datasets/semantic_kitti"),
}
HOW_TO_GET = {
    "nuscenes": "get it from nuscenes.org (v1.0-mini or v1.0-trainval with lidarseg)",
    "kitti": "get it from semantic-kitti.org (velodyne, labels, calib, and image_2 of KITTI odometry)",
}


def open_reader(dataset: str, root: Path | None, split: str) -> Reader:
    """The reader of one split of a data set; the built-in world is written first if it is not there.

    Args:
        dataset: "synthetic", "nuscenes" or "kitti".
        root: its folder; None = datasets/<its own folder>.
        split: a split's name.

    Raises InputError if the data set or the split is not there.
    """
    root = root or DEFAULT_ROOTS[dataset]
    if dataset == "synthetic":
        if not (root / "nuscenes" / VERSION).is_dir():
            write_nuscenes(root / "nuscenes", SyntheticWorld(), workers=os.cpu_count() or 1)
        return NuScenes(root / "nuscenes", split)
    remedy = (
        f"{HOW_TO_GET[dataset]} and link it there or pass --root FOLDER, "
        "or use --dataset synthetic, which runs on built-in data."
    )
    require_folder(root, f"{dataset} data set", remedy)
    return {"nuscenes": NuScenes, "kitti": SemanticKitti}[dataset](root, split)
