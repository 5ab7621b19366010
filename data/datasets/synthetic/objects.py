"""The objects of the built-in world as boxes: what its annotations say."""

from itertools import product

import numpy as np

from data.boxes import Boxes
from data.datasets.synthetic.render import NUSCENES_LABEL
from data.datasets.synthetic.world import Scene

MARGIN = 0.04  # metres around the surfaces, twice the noise of the lidar's ranges


def objects(scene: Scene) -> Boxes:
    """Every vehicle, person and obstacle of a scene, in world coordinates; a label is a raw one of nuScenes.

    A box lies along its object's first part and holds all of them, with a margin for the noise of the lidar.
    """
    rows = []
    signs = np.array(list(product((-1, 1), repeat=3)))
    for owner in np.unique(scene.owner[np.isin(NUSCENES_LABEL[scene.material], LABELS)]):
        parts = np.flatnonzero(scene.owner == owner)
        (cos, sin), first = scene.yaw[parts[0]], scene.centre[parts[0]]
        own, offsets = scene.yaw[parts], signs * scene.half[parts, None]
        x = own[:, :1] * offsets[..., 0] - own[:, 1:] * offsets[..., 1]
        y = own[:, 1:] * offsets[..., 0] + own[:, :1] * offsets[..., 1]
        places = (np.stack((x, y, offsets[..., 2]), 2) + scene.centre[parts, None] - first).reshape(-1, 3)
        places = places @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])  # along the box's own axes
        low, high = places.min(0) - MARGIN, places.max(0) + MARGIN
        middle = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ (low + high) / 2
        rows.append((first + middle, high - low, np.arctan2(sin, cos), NUSCENES_LABEL[scene.material[parts[0]]]))
    return Boxes.of(*zip(*rows, strict=True))


LABELS = (2, 9, 12, 14, 16, 17, 18, 21, 22, 23)  # of the ten classes of nuScenes' detection benchmark
