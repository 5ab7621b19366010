"""From the labels on disk to train ids and back; class names and colours. Train id 0 is "ignored" everywhere."""

from pathlib import Path

import numpy as np

from data.disk import InputError

# class name, RGB, raw labels (the first is the one to write when predictions go back to raw labels)
_NUSCENES = [
    ("ignored", (0, 0, 0), [0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31]),
    ("barrier", (112, 128, 144), [9]),
    ("bicycle", (220, 20, 60), [14]),
    ("bus", (255, 127, 80), [16, 15]),
    ("car", (255, 158, 0), [17]),
    ("construction vehicle", (233, 150, 70), [18]),
    ("motorcycle", (255, 61, 99), [21]),
    ("pedestrian", (0, 0, 230), [2, 3, 4, 6]),
    ("traffic cone", (47, 79, 79), [12]),
    ("trailer", (255, 140, 0), [22]),
    ("truck", (255, 99, 71), [23]),
    ("driveable surface", (0, 207, 191), [24]),
    ("other flat", (175, 0, 75), [25]),
    ("sidewalk", (75, 0, 75), [26]),
    ("terrain", (112, 180, 60), [27]),
    ("manmade", (222, 184, 135), [28]),
    ("vegetation", (0, 175, 0), [30]),
]
_SEMANTIC_KITTI = [
    ("ignored", (0, 0, 0), [0, 1, 52, 99]),
    ("car", (100, 150, 245), [10, 252]),
    ("bicycle", (100, 230, 245), [11]),
    ("motorcycle", (30, 60, 150), [15]),
    ("truck", (80, 30, 180), [18, 258]),
    ("other vehicle", (0, 0, 255), [20, 13, 16, 256, 257, 259]),
    ("person", (255, 30, 30), [30, 254]),
    ("bicyclist", (255, 40, 200), [31, 253]),
    ("motorcyclist", (150, 30, 90), [32, 255]),
    ("road", (255, 0, 255), [40, 60]),
    ("parking", (255, 150, 255), [44]),
    ("sidewalk", (75, 0, 75), [48]),
    ("other ground", (175, 0, 75), [49]),
    ("building", (255, 200, 0), [50]),
    ("fence", (255, 120, 50), [51]),
    ("vegetation", (0, 175, 0), [70]),
    ("trunk", (135, 60, 0), [71]),
    ("terrain", (150, 240, 80), [72]),
    ("pole", (255, 240, 150), [80]),
    ("traffic sign", (255, 0, 0), [81]),
]
_TABLES = {"nuscenes": _NUSCENES, "semantic_kitti": _SEMANTIC_KITTI}
_UNKNOWN = 255  # train id of raw labels that do not exist


def _learning_map(table: list) -> np.ndarray:
    """Raw label -> train id, as an array."""
    learning_map = np.full(1 + max(max(raw) for _, _, raw in table), _UNKNOWN, np.uint8)
    for train_id, (_, _, raw) in enumerate(table):
        learning_map[raw] = train_id
    return learning_map


# By the name of the data set (Reader.name)
CLASSES = {name: tuple(row[0] for row in table) for name, table in _TABLES.items()}
COLOURS = {name: np.array([row[1] for row in table], np.uint8) for name, table in _TABLES.items()}  # [classes, 3] RGB
_LEARNING_MAPS = {name: _learning_map(table) for name, table in _TABLES.items()}
_INVERSE_MAPS = {name: np.array([row[2][0] for row in table], np.uint16) for name, table in _TABLES.items()}


def to_train_ids(raw: np.ndarray, dataset: str, file: str | Path) -> np.ndarray:
    """Train ids of raw labels (paper, supplement: 16 classes of nuScenes, 19 of SemanticKITTI, and 0 = ignored).

    Args:
        raw: `[N]` unsigned integers; SemanticKITTI's upper 16 bits, the instance, are left out.
        dataset: "nuscenes" or "semantic_kitti".
        file: where they were read, for the error.

    Returns `[N]` uint8. Raises InputError if a label is none of the data set's.
    """
    if dataset == "semantic_kitti":
        raw = raw & 0xFFFF
    learning_map = _LEARNING_MAPS[dataset]
    train_ids = learning_map[np.minimum(raw, len(learning_map) - 1)]
    strange = raw[(raw >= len(learning_map)) | (train_ids == _UNKNOWN)]
    if len(strange):
        raise InputError(
            f"{file} has the label {strange[0]}, which {dataset} does not define ({len(strange)} points in all): "
            "download it again."
        )
    return train_ids


def to_raw_ids(train_ids: np.ndarray, dataset: str) -> np.ndarray:
    """One raw label a class, `[N]` integers below the number of classes -> `[N]` uint16, for submission files."""
    return _INVERSE_MAPS[dataset][train_ids]
