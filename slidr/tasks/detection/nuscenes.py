"""nuScenes' detection metric: matches by the distance of centres (Caesar et al., CVPR 2020, section 3.1).

Velocities and attributes are not predicted here: their errors count as 1, the most, in the nuScenes detection score.
"""

import math

import numpy as np

from data.boxes import Boxes, Detections, points_in_boxes
from slidr.tasks.scores import NAN, Scores

DISTANCES, ERRORS_AT = (0.5, 1.0, 2.0, 4.0), 2.0  # metres from centre to centre; true positives' errors: at this one
ERRORS = ("ATE", "ASE", "AOE")  # mean errors of translation (m), scale (1 - IoU), orientation (radians)
FURTHEST = {"pedestrian": 40, "motorcycle": 40, "bicycle": 40, "traffic cone": 30, "barrier": 30}  # metres; others 50
# Where nuScenes' lidar sees the vehicle's centre, from which these distances count: x, y in metres. On some of its
# vehicles it is 4 cm further behind; boxes as near as that to the limit may count here and not there.
VEHICLE = (0.0, -0.94)
RECALLS = np.linspace(0, 1, 101)
LOW = 0.1  # recall and precision up to this do not count
_FIRST = round(100 * LOW) + 1


class NuScenesScores:
    """The metric of nuScenes (the contract: `slidr.tasks.detection.metrics.Metric`).

    Boxes farther from the vehicle than their class is evaluated, and boxes in a region to ignore, do not count, whether
    found or true.

    Args:
        classes: names of the classes of boxes (`DataSet.boxes`).
    """

    def __init__(self, classes: tuple[str, ...]):
        self.classes, self.frames = classes, {}
        self._furthest = np.array([FURTHEST.get(name, 50) for name in classes], np.float64)

    def add(self, frame_id: str, found: Detections, truth: Boxes, ignore: Boxes) -> None:
        """Keep the boxes of a frame that count."""
        counting = self._counts(found.boxes, ignore)
        self.frames[frame_id] = found.select(counting), truth.select(self._counts(truth, ignore))

    def merge(self, others: "list[NuScenesScores]") -> None:
        """Add the frames of others."""
        for other in others:
            self.frames |= other.frames

    def scores(self) -> Scores:
        """mAP over classes and distances, NDS, the AP of each class, and the mean errors among the details."""
        aps, errors, there = zip(*(self._class(label) for label in range(len(self.classes))), strict=True)
        # a class without a true box has an AP of 0 and errors of 1, as the devkit counts
        mean_ap = float(np.mean(aps)) if any(there) else NAN
        mean = np.nanmean(errors, axis=0) if any(there) else np.full(len(ERRORS), NAN)
        nds = (5 * mean_ap + np.clip(1 - mean, 0, None).sum()) / 10
        by_class = dict(zip(self.classes, zip(aps, errors, there, strict=True), strict=True))
        return Scores(
            figures={name: 100 * ap if is_there else NAN for name, (ap, _, is_there) in by_class.items()}
            | {"NDS": 100 * float(nds), "mAP": 100 * mean_ap},
            primary="mAP",
            measure="AP",
            details={
                "errors": _named(mean),
                "errors by class": {name: _named(row) for name, (_, row, is_there) in by_class.items() if is_there},
            },
        )

    def _counts(self, boxes: Boxes, ignore: Boxes) -> np.ndarray:
        """Which boxes count: a mask `[K]`."""
        distance = np.linalg.norm(boxes.centre[:, :2] - np.float64(VEHICLE), axis=1)
        near = distance < self._furthest[boxes.label]
        for label in np.unique(ignore.label):
            inside = points_in_boxes(boxes.centre, ignore.select(ignore.label == label)) >= 0
            near &= ~(inside & (boxes.label == label))
        return near

    def _class(self, label: int) -> tuple[float, np.ndarray, bool]:
        """AP of a class in 0..1, its mean errors `[3]`, nan = not measured, and whether there is a box to find."""
        rows = [
            (found.select(found.boxes.label == label), truth.select(truth.label == label))
            for found, truth in self.frames.values()
        ]
        total = sum(len(truth) for _, truth in rows)
        score = np.concatenate([found.score for found, _ in rows]) if rows else np.zeros(0)
        order = np.lexsort((np.arange(len(score)), score))[::-1]  # the devkit's: of equal scores the last one first
        curves = {}
        for distance in DISTANCES:
            matched = [_match(found, truth, distance) for found, truth in rows]
            which = np.concatenate([part[0] for part in matched])[order] if rows else np.zeros(0, bool)
            wrong = np.concatenate([part[1] for part in matched])[order] if rows else np.zeros((0, 3))
            curves[distance] = which, wrong
        aps = [_average_precision(which, total) for which, _ in curves.values()]
        period = math.pi if self.classes[label] == "barrier" else 2 * math.pi  # its front and back are alike
        which, wrong = curves[ERRORS_AT]
        wrong[:, 2] = np.abs((wrong[:, 2] + period / 2) % period - period / 2)
        errors = _mean_errors(which, wrong, score[order], total)
        if self.classes[label] == "traffic cone":  # it has no heading
            errors[2] = NAN
        return float(np.mean(aps)), errors, total > 0


def _match(found: Detections, truth: Boxes, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Give each true box to the surest detection of which it is the nearest that is left.

    Returns:
        Which detections have one, `[K]` bool, and their errors `[K, 3]` float64: metres, 1 - IoU of the sizes, radians
        of the heading, any number of turns; nan for the others.
    """
    hit, errors = np.zeros(len(found), bool), np.full((len(found), 3), NAN)
    boxes = found.boxes
    apart = np.linalg.norm(boxes.centre[:, None, :2].astype(np.float64) - truth.centre[:, :2], axis=2)
    candidates = np.flatnonzero((apart < distance).any(1)) if len(truth) else []
    candidates = sorted(candidates, key=lambda i: (found.score[i], i), reverse=True)
    for i in candidates:
        j = int(apart[i].argmin())
        if apart[i, j] >= distance:
            continue
        size, true_size = boxes.size[i].astype(np.float64), truth.size[j].astype(np.float64)
        shared = np.minimum(size, true_size).prod()
        turned = float(truth.yaw[j]) - float(boxes.yaw[i])
        hit[i] = True
        errors[i] = apart[i, j], 1 - shared / (size.prod() + true_size.prod() - shared), turned
        apart[:, j] = np.inf
    return hit, errors


def _average_precision(hit: np.ndarray, total: int) -> float:
    """Of detections `[K]`, surest first, that are right or wrong; the mean over recalls above 0.1, in 0..1."""
    if not hit.any():
        return 0.0
    right = np.cumsum(hit).astype(np.float64)
    precision = np.interp(RECALLS, right / total, right / np.arange(1, len(hit) + 1), right=0)
    return float((precision[_FIRST:] - LOW).clip(0).mean() / (1 - LOW))


def _mean_errors(hit: np.ndarray, errors: np.ndarray, score: np.ndarray, total: int) -> np.ndarray:
    """Mean over the recalls above 0.1 that are reached of the mean error of all that is surer, `[3]`; 1 if none is."""
    if not hit.any():
        return np.ones(len(ERRORS))
    surest = np.interp(RECALLS, np.cumsum(hit) / total, score.astype(np.float64), right=0)
    reached = np.flatnonzero(surest)
    last = reached[-1] if len(reached) else 0
    if last < _FIRST:
        return np.ones(len(ERRORS))
    running = np.cumsum(errors[hit], axis=0) / np.arange(1, hit.sum() + 1)[:, None]
    at = score[hit].astype(np.float64)
    curves = [np.interp(surest[::-1], at[::-1], column[::-1])[::-1] for column in running.T]
    return np.array([curve[_FIRST : last + 1].mean() for curve in curves])


def _named(errors: np.ndarray) -> dict[str, float | None]:
    """Errors by name, for JSON; None = nan."""
    return {name: None if math.isnan(value) else float(value) for name, value in zip(ERRORS, errors, strict=True)}
