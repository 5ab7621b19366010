"""KITTI's detection metric: average precision at 40 recalls, from above and in space (Geiger et al., CVPR 2012).

As its official program counts (cpp/evaluate_object): a box is found by one detection that overlaps it by more than 0.7
(car) or 0.5 (pedestrian, cyclist). What is harder than the level, and vans and sitting people, may be found or not.
Detections less high in the image than the level asks for do not count. Regions marked DontCare are known in the image
only, and count in the metric of images only.
"""

import numpy as np

from data.boxes import Boxes, Detections
from data.datasets.dataset import BoxReader
from slidr.tasks.detection.iou import bev_iou, iou_3d
from slidr.tasks.scores import NAN, Scores

LEVELS = {"easy": 40, "moderate": 25, "hard": 25}  # pixels that a box is high in the image, at least
OVERLAPS = {"BEV": bev_iou, "3D": iou_3d}
OVERLAP = {"car": 0.7}  # that finds an object; others 0.5
RECALLS = 40


class KittiScores:
    """The metric of KITTI (the contract: `slidr.tasks.detection.metrics.Metric`).

    Args:
        classes: names of the classes of boxes (`DataSet.boxes`).
        reader: says where in a frame's image boxes are.
    """

    def __init__(self, classes: tuple[str, ...], reader: BoxReader):
        self.classes, self.frames, self._reader = classes, {}, reader

    def add(self, frame_id: str, found: Detections, truth: Boxes, ignore: Boxes) -> None:
        """Keep a frame's detections with their heights, and its objects with their overlaps."""
        objects = Boxes.concatenate([truth, ignore])
        ignored = np.arange(len(objects)) >= len(truth)
        overlaps = {name: overlap(found.boxes, objects) for name, overlap in OVERLAPS.items()}
        _, top, _, bottom = self._reader.image_boxes(frame_id, found.boxes).T
        kinds, difficulty = objects.label, objects.difficulty
        self.frames[frame_id] = found.boxes.label, found.score, bottom - top, kinds, difficulty, ignored, overlaps

    def merge(self, others: "list[KittiScores]") -> None:
        """Add the frames of others."""
        for other in others:
            self.frames |= other.frames

    def scores(self) -> Scores:
        """AP of each class, metric and level; mAP is the mean over the classes, in space, moderate."""
        figures = {
            f"{name} {metric} {level}": self._average_precision(label, metric, rank)
            for label, name in enumerate(self.classes)
            for metric in OVERLAPS
            for rank, level in enumerate(LEVELS)
        }
        moderate = [figures[f"{name} 3D moderate"] for name in self.classes]
        mean = NAN if np.isnan(moderate).all() else float(np.nanmean(moderate))
        return Scores(figures | {"mAP": mean}, primary="mAP", measure="AP")

    def _average_precision(self, label: int, metric: str, level: int) -> float:
        """Per cent; nan without objects of the class and level."""
        least, lowest = OVERLAP.get(self.classes[label], 0.5), list(LEVELS.values())[level]
        parts = []
        for found, score, heights, kinds, difficulty, ignored, overlaps in self.frames.values():
            small = heights < lowest  # of any class: the official program looks at the height first
            mine, its = small | (found == label), kinds == label
            optional = ignored[its] | (difficulty[its] > level)
            overlap = overlaps[metric][mine][:, its]
            parts.append((score[mine], small[mine], optional, overlap > least, overlap))
        total = sum(np.count_nonzero(~optional) for _, _, optional, *_ in parts)
        if not total:
            return NAN
        scores = np.concatenate([_scores_of_hits(*part[:4]) for part in parts])
        thresholds = _thresholds(scores, total)
        right, wrong = sum(_counts(*part, thresholds) for part in parts)
        precision = np.zeros(RECALLS + 1)
        precision[: len(thresholds)] = right / np.maximum(right + wrong, 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
        return float(100 * best[1:].mean())


def _scores_of_hits(score: np.ndarray, small: np.ndarray, optional: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Scores of the detections that find an object that counts: of those that fit it, the surest that is left."""
    free, hits = np.ones(len(score), bool), []
    for j in range(fits.shape[1]):
        candidates = np.flatnonzero(free & fits[:, j])
        if not len(candidates):
            continue
        best = candidates[score[candidates].argmax()]
        free[best] = False
        if not (optional[j] or small[best]):
            hits.append(score[best])
    return np.array(hits)


def _thresholds(scores: np.ndarray, total: int) -> np.ndarray:
    """Of the `scores` of hits those, from the surest on, at which the recall is nearest to 0, 1/40, 2/40, ..."""
    chosen, recall, scores = [], 0.0, np.sort(scores)[::-1]
    for i, score in enumerate(scores):
        last = i + 1 == len(scores)
        if not last and (i + 2) / total - recall < recall - (i + 1) / total:
            continue
        chosen.append(score)
        recall += 1 / RECALLS
    return np.array(chosen)


def _counts(
    score: np.ndarray,
    small: np.ndarray,
    optional: np.ndarray,
    fits: np.ndarray,
    overlap: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """Detections of a frame that are right and that are wrong, `[2, T]`, of those at least as sure as each threshold.

    Each object in turn takes, of those that fit it and are left, the one that overlaps it most, or else a small one.
    """
    if not len(score):
        return np.zeros((2, len(thresholds)), int)
    free = score >= thresholds[:, None]
    right, every = np.zeros(len(thresholds), int), np.arange(len(thresholds))
    for j in range(fits.shape[1]):
        candidates = free & fits[:, j]
        proper = candidates & ~small
        best = np.where(proper.any(1), np.where(proper, overlap[:, j], -1).argmax(1), candidates.argmax(1))
        taken = candidates.any(1)
        free[every[taken], best[taken]] = False
        if not optional[j]:
            right += proper.any(1)
    return np.stack((right, (free & ~small).sum(1)))
