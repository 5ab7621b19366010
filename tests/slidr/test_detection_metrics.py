"""Overlaps of boxes, nuScenes' metric beside the devkit's, KITTI's beside a naive one and cases counted by hand."""

import itertools
import math
import time

import numpy as np
import pytest

from data.boxes import Boxes, Detections, corners
from data.datasets.nuscenes import BOXES
from slidr.tasks.detection.iou import bev_iou, iou_3d, overlap_areas
from slidr.tasks.detection.kitti import LEVELS
from slidr.tasks.detection.metrics import KittiScores, NuScenesScores


def random_boxes(rng: np.random.Generator, count: int, spread: float = 5.0, classes: int = 1) -> Boxes:
    centre, size = rng.uniform(-spread, spread, (count, 3)) * (1, 1, 0.1), rng.uniform(0.5, 5, (count, 3))
    return Boxes.of(centre, size, rng.uniform(-4, 4, count), rng.integers(0, classes, count))


def box(x=0.0, y=0.0, z=0.0, size=(4, 2, 1.5), yaw=0.0, label=0, difficulty=0) -> Boxes:
    return Boxes.of([[x, y, z]], [size], [yaw], [label], difficulty=[difficulty])


# --- overlaps


def clipped_area(outline: np.ndarray, other: np.ndarray) -> float:
    """Sutherland and Hodgman's clipping of one polygon `[4, 2]` by another, then the shoelace formula."""
    polygon = [tuple(corner) for corner in outline]
    for start, end in zip(other, np.roll(other, -1, axis=0), strict=True):
        sides = [(end - start)[0] * (p[1] - start[1]) - (end - start)[1] * (p[0] - start[0]) for p in polygon]
        kept = []
        for i, (point, side) in enumerate(zip(polygon, sides, strict=True)):
            if (side >= 0) != (sides[i - 1] >= 0):
                share = sides[i - 1] / (sides[i - 1] - side)
                kept.append(tuple(np.add(polygon[i - 1], share * np.subtract(point, polygon[i - 1]))))
            if side >= 0:
                kept.append(point)
        polygon = kept
    return sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2


@pytest.mark.parametrize("counts", [(0, 3), (1, 0), (1, 1), (40, 25)])
def test_shared_areas_are_those_of_clipped_polygons(counts):
    rng = np.random.default_rng(sum(counts))
    first, second = (random_boxes(rng, count) for count in counts)
    outlines = [corners(boxes)[:, :4, :2] for boxes in (first, second)]
    expected = np.array([clipped_area(a, b) for a, b in itertools.product(*outlines)]).reshape(counts)
    assert np.allclose(overlap_areas(first, second), expected, atol=1e-6)
    assert counts != (40, 25) or (expected > 0).mean() > 0.1


def test_overlaps_counted_by_hand():
    square = box(size=(2, 2, 2))
    others = Boxes.concatenate(
        [
            box(size=(2, 2, 2), yaw=math.pi / 4),  # a regular octagon is shared
            box(x=1, size=(2, 2, 2)),
            box(x=2, size=(2, 2, 2)),  # they touch
            box(z=1, size=(2, 2, 2), yaw=math.pi),
            box(z=3, size=(1, 1, 1)),  # above, and inside from above
            box(size=(2, 0, 2)),  # no area
        ]
    )
    octagon = 8 * (math.sqrt(2) - 1)
    assert np.allclose(bev_iou(square, others), [[octagon / (8 - octagon), 1 / 3, 0, 1, 0.25, 0]], atol=1e-6)
    assert np.allclose(iou_3d(square, others), [[octagon / (8 - octagon), 1 / 3, 0, 1 / 3, 0, 0]], atol=1e-6)


def test_a_box_overlaps_itself_wholly_wherever_it_stands_and_whichever_way_it_heads():
    rng = np.random.default_rng(0)
    for turn in (0, math.pi / 2, 1.0, math.pi):
        boxes = random_boxes(rng, 200, spread=100)
        boxes.yaw[:50] = turn
        back = Boxes.of(boxes.centre, boxes.size, boxes.yaw + math.pi, boxes.label)
        for other in (boxes, back):
            assert np.allclose(np.diag(bev_iou(boxes, other)), 1, atol=1e-5)
            assert np.allclose(np.diag(iou_3d(boxes, other)), 1, atol=1e-5)
    nudged = Boxes.of(boxes.centre + rng.normal(0, 1e-7, (200, 3)), boxes.size, boxes.yaw + 1e-7, boxes.label)
    assert np.allclose(np.diag(bev_iou(boxes, nudged)), 1, atol=1e-4)


def test_fifty_times_fifty_boxes_take_no_time():
    rng = np.random.default_rng(0)
    first, second = random_boxes(rng, 50, spread=30), random_boxes(rng, 50, spread=30)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        iou_3d(first, second)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1


# --- nuScenes


def street(rng: np.random.Generator, classes: int, spread: float = 30.0) -> tuple[Detections, Boxes]:
    """Some objects, and what a mediocre detector finds: most of them, moved a little, and some that are not there."""
    truth = random_boxes(rng, int(rng.integers(0, 30)), spread, classes)
    kept = truth.select(rng.random(len(truth)) < 0.8)
    moved = Boxes.of(
        kept.centre + rng.normal(0, 0.7, (len(kept), 3)),
        kept.size * rng.uniform(0.7, 1.4, (len(kept), 3)),
        kept.yaw + rng.normal(0, 0.5, len(kept)) + math.pi * (rng.random(len(kept)) < 0.2),
        kept.label,
    )
    found = Boxes.concatenate(
        [moved, moved.select(rng.random(len(moved)) < 0.2), random_boxes(rng, 8, spread, classes)]
    )
    score = np.round(rng.random(len(found)), 2)  # some are equal
    score[: len(moved)] = np.round(score[: len(moved)] ** 0.5, 2)
    return Detections(found, score.astype(np.float32)), truth


def devkit_scores(frames: dict[str, tuple[Detections, Boxes]]) -> dict:
    """The devkit's own matching, averages and errors."""
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetrics

    def all_boxes(which: int) -> EvalBoxes:
        boxes = EvalBoxes()
        for token, frame in frames.items():
            part = frame[which].boxes if which == 0 else frame[1]
            score = frame[0].score if which == 0 else np.full(len(part), -1.0)
            boxes.add_boxes(
                token,
                [
                    DetectionBox(
                        sample_token=token,
                        translation=tuple(map(float, part.centre[i])),
                        size=tuple(map(float, part.size[i][[1, 0, 2]])),
                        rotation=(math.cos(part.yaw[i] / 2), 0, 0, math.sin(part.yaw[i] / 2)),
                        detection_name=BOXES[part.label[i]].replace(" ", "_"),
                        detection_score=float(score[i]),
                    )
                    for i in range(len(part))
                ],
            )
        return boxes

    config, truth, found = config_factory("detection_cvpr_2019"), all_boxes(1), all_boxes(0)
    metrics = DetectionMetrics(config)
    for name in config.class_names:
        for distance in config.dist_ths:
            data = accumulate(truth, found, name, center_distance, distance)
            metrics.add_label_ap(name, distance, calc_ap(data, config.min_recall, config.min_precision))
            if distance == config.dist_th_tp:
                for error in ("trans_err", "scale_err", "orient_err"):
                    no_heading = name == "traffic_cone" and error == "orient_err"
                    metrics.add_label_tp(name, error, math.nan if no_heading else calc_tp(data, 0.1, error))
                for error in ("vel_err", "attr_err"):
                    metrics.add_label_tp(name, error, 1.0)
    metrics.add_runtime(0)
    return metrics.serialize()


@pytest.mark.parametrize("seed, frames, classes", [(0, 12, 10), (1, 3, 10), (2, 1, 2), (3, 40, 1)])
def test_nuscenes_metric_is_the_devkits(seed, frames, classes):
    pytest.importorskip("nuscenes.eval.detection.algo")
    rng = np.random.default_rng(seed)
    streets = {f"frame {i}": street(rng, classes, spread=15) for i in range(frames)}
    ours = NuScenesScores(BOXES)
    for name, (found, truth) in streets.items():
        ours.add(name, found, truth, Boxes.empty())
    scores, theirs = ours.scores(), devkit_scores(streets)
    assert scores.value == pytest.approx(100 * theirs["mean_ap"], abs=1e-4) and scores.value > 0
    assert scores.figures["NDS"] == pytest.approx(100 * theirs["nd_score"], abs=1e-4)
    present = {BOXES[label] for _, truth in streets.values() for label in truth.label}
    keys = {"ATE": "trans_err", "ASE": "scale_err", "AOE": "orient_err"}
    for name in BOXES:
        official = name.replace(" ", "_")
        if name not in present:
            assert math.isnan(scores.figures[name])
            continue
        assert scores.figures[name] == pytest.approx(100 * theirs["mean_dist_aps"][official], abs=1e-4)
        for error, key in keys.items():
            got, expected = scores.details["errors by class"][name][error], theirs["label_tp_errors"][official][key]
            assert (got is None and math.isnan(expected)) or got == pytest.approx(expected, abs=1e-5)
    for error, key in keys.items():
        assert scores.details["errors"][error] == pytest.approx(theirs["tp_errors"][key], abs=1e-5)


def test_nuscenes_limits_and_regions_count_neither_way():
    far = Boxes.concatenate([box(y=49 - 0.94), box(y=51 - 0.94), box(y=31 - 0.94, label=BOXES.index("barrier"))])
    rack = box(x=10, label=BOXES.index("bicycle"))
    bicycles = Boxes.concatenate([box(x=10.5, label=7, size=(1, 1, 1)), box(x=-10, label=7, size=(1, 1, 1))])
    truth = Boxes.concatenate([far, bicycles])
    metric = NuScenesScores(BOXES)
    metric.add("a", Detections(truth, np.ones(5, np.float32)), truth, rack)
    found, kept = metric.frames["a"]
    assert kept.centre[:, :2].tolist() == pytest.approx(np.array([[0, 49 - 0.94], [-10, 0]])) and len(found) == 2
    figures = metric.scores().figures
    assert figures["car"] == figures["bicycle"] == pytest.approx(100) and math.isnan(figures["barrier"])


def test_nothing_found_and_nothing_there():
    none = Detections(Boxes.empty(), np.zeros(0, np.float32))
    metric = NuScenesScores(BOXES)
    assert math.isnan(metric.scores().value)
    metric.add("a", none, Boxes.empty(), Boxes.empty())
    assert math.isnan(metric.scores().value)
    metric.add("b", none, box(), Boxes.empty())
    assert metric.scores().value == 0 and metric.scores().figures["car"] == 0
    kitti = kitti_metric()
    kitti.add("a", none, Boxes.empty(), Boxes.empty())
    assert math.isnan(kitti.scores().value)
    kitti.add("b", none, box(), Boxes.empty())
    assert kitti.scores().value == 0


def test_frames_of_several_processes_come_together():
    rng = np.random.default_rng(0)
    streets = {f"frame {i}": street(rng, 3) for i in range(6)}
    whole, parts = NuScenesScores(BOXES), [NuScenesScores(BOXES) for _ in range(2)]
    for i, (name, (found, truth)) in enumerate(streets.items()):
        for metric in (whole, parts[i % 2], parts[i < 1]):  # the first frame went to both
            metric.add(name, found, truth, Boxes.empty())
    parts[0].merge(parts)
    assert parts[0].scores().figures == pytest.approx(whole.scores().figures, nan_ok=True, abs=1e-6)


# --- KITTI


class FlatImages:
    """A reader in whose images every box is ten pixels high for each metre."""

    def image_boxes(self, frame_id: str, boxes: Boxes) -> np.ndarray:
        height = 10 * boxes.size[:, 2].astype(np.float64)
        return np.stack((0 * height, 0 * height, 0 * height, height), 1)


def kitti_metric() -> KittiScores:
    return KittiScores(("car", "pedestrian", "cyclist"), FlatImages())


def naive_kitti(frames, label: int, overlap, least: float, level: int) -> float:
    """The definition, one threshold, one frame, one object and one detection at a time."""
    lowest = list(LEVELS.values())[level]

    def count(found, truth, ignore, threshold):
        objects = Boxes.concatenate([truth, ignore])
        shared, taken, hits, misses = overlap(found.boxes, objects), set(), [], 0
        small = [10 * h < lowest for h in found.boxes.size[:, 2]]
        alive = [
            i
            for i in range(len(found))
            if (small[i] or found.boxes.label[i] == label) and (threshold is None or found.score[i] >= threshold)
        ]
        for j in range(len(objects)):
            if objects.label[j] != label:
                continue
            optional = j >= len(truth) or objects.difficulty[j] > level
            fitting = [i for i in alive if i not in taken and shared[i, j] > least]
            if threshold is None:
                best = max(fitting, key=lambda i: (found.score[i], -i), default=None)
            else:
                best = max((i for i in fitting if not small[i]), key=lambda i: (shared[i, j], -i), default=None)
                best = next(iter(fitting), None) if best is None else best
            if best is None:
                misses += not optional
                continue
            taken.add(best)
            if not optional and not small[best]:
                hits.append(found.score[best])
        wrong = [i for i in alive if i not in taken and not small[i]]
        return hits, len(wrong), misses

    total = sum(((truth.label == label) & (truth.difficulty <= level)).sum() for _, truth, _ in frames)
    scores = sorted((s for frame in frames for s in count(*frame, None)[0]), reverse=True)
    thresholds, recall = [], 0.0
    for i, score in enumerate(scores):
        here, next_one = (i + 1) / total, (i + 2) / total if i + 1 < len(scores) else (i + 1) / total
        if i + 1 == len(scores) or abs(next_one - recall) >= abs(recall - here):
            thresholds.append(score)
            recall += 1 / 40
    precision = [0.0] * 41
    for k, threshold in enumerate(thresholds):
        counted = [count(*frame, threshold) for frame in frames]
        right, wrong = sum(len(c[0]) for c in counted), sum(c[1] for c in counted)
        precision[k] = right / (right + wrong) if right + wrong else 0.0
    return 100 * sum(max(precision[k:]) for k in range(1, 41)) / 40


def kitti_street(rng: np.random.Generator) -> tuple[Detections, Boxes, Boxes]:
    found, truth = street(rng, 3, spread=12)
    found.boxes.centre[:] += 0.2 * rng.normal(size=found.boxes.centre.shape)
    truth.difficulty[:] = rng.integers(0, 4, len(truth))
    exact = rng.random(len(truth)) < 0.6  # enough of them overlap by more than 0.7
    found = Detections(
        Boxes.concatenate([truth.select(exact), found.boxes]),
        np.concatenate((rng.random(exact.sum()), found.score)).astype(np.float32),
    )
    split = rng.random(len(truth)) < 0.8
    return found, truth.select(split), truth.select(~split)


@pytest.mark.parametrize("seed, count", [(0, 1), (1, 8)])
def test_kitti_metric_is_the_naive_one(seed, count):
    rng = np.random.default_rng(seed)
    frames, metric = [kitti_street(rng) for _ in range(count)], kitti_metric()
    for i, frame in enumerate(frames):
        metric.add(str(i), *frame)
    figures = metric.scores().figures
    for (label, name), (kind, overlap), (level, word) in itertools.product(
        enumerate(metric.classes), (("BEV", bev_iou), ("3D", iou_3d)), enumerate(LEVELS)
    ):
        expected = naive_kitti(frames, label, overlap, 0.7 if name == "car" else 0.5, level)
        assert figures[f"{name} {kind} {word}"] == pytest.approx(expected, abs=1e-6)
    assert 0 < metric.scores().value < 100


def kitti_ap(found: list[tuple[Boxes, float]], truth: list[Boxes], ignore=(), figure="car 3D moderate") -> float:
    metric = kitti_metric()
    boxes, scores = Boxes.concatenate([b for b, _ in found]), np.array([s for _, s in found], np.float32)
    metric.add("a", Detections(boxes, scores), Boxes.concatenate(truth), Boxes.concatenate(list(ignore)))
    return metric.scores().figures[figure]


TALL, SMALL = (4, 2, 5), (4, 2, 2)  # 50 and 20 pixels high


def test_kitti_cases_counted_by_hand():
    ten = [box(x=10.0 * i, size=TALL) for i in range(10)]
    five = [(b, 0.9 - 0.01 * i) for i, b in enumerate(ten[:5])]
    # the scores of five hits become thresholds of the recalls 0, 1/40, ..., 4/40, whatever recall they are at
    assert kitti_ap(five, ten) == pytest.approx(100 * 4 / 40)
    hundred = [box(x=10.0 * i, size=TALL) for i in range(40)]
    every = [(b, 0.9 - 0.01 * i) for i, b in enumerate(hundred)]
    assert kitti_ap(every, hundred) == pytest.approx(100 * 39 / 40)
    wrong = [(box(x=-50.0, size=TALL), 0.95)]  # one false positive before them all: 39 precisions up to 40 / 41
    assert kitti_ap(every + wrong, hundred) == pytest.approx(100 * 39 / 40 * 40 / 41)
    assert kitti_ap([(box(size=(4, 2, 5), x=0.8), 0.9)], ten[:1]) == 0  # an overlap of 0.67


def test_kitti_leaves_out_what_is_hard_small_or_a_neighbour():
    good, hard = box(size=TALL), box(x=20, size=TALL, difficulty=2)
    base = [(good, 0.5)] + [(box(x=10.0 * i, y=50, size=TALL), 0.4) for i in range(1)]
    truth = [good, base[1][0]]
    right = kitti_ap(base, truth)
    assert right > 0
    assert kitti_ap([*base, (box(x=20, size=TALL), 0.9)], [*truth, hard]) == right  # found, and not asked for
    assert kitti_ap(base, [*truth, hard]) == right  # not found
    assert kitti_ap([*base, (box(x=20, size=TALL), 0.9)], truth, [box(x=20, size=TALL)]) == right  # a van
    assert kitti_ap([*base, (box(x=20, size=SMALL), 0.9)], truth) == right  # too small to count
    assert kitti_ap([*base, (box(x=20, size=TALL), 0.9)], truth) < right  # a false positive
    assert kitti_ap([*base, (box(x=20, size=TALL, label=1), 0.9)], truth) == right  # of another class
    hard_ap = kitti_ap(base, [*truth, hard], figure="car 3D hard")
    assert hard_ap == right  # two thresholds, as before: here the object is asked for, and lowers recall alone
