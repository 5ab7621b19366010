"""Published figures, to stand beside ours.

Source: Sautier et al., Image-to-Lidar Self-Supervised Distillation for Autonomous Driving Data, CVPR 2022
(arXiv:2203.16258). IoU in per cent on the official validation split, a Res16UNet34C pretrained on nuScenes. The sign
† marks baselines in the authors' own reproduction.
"""

SOURCE = "Sautier et al., CVPR 2022, Res16UNet34C pretrained on nuScenes († = baseline as reproduced there)"

METHODS = ("SLidR", "PPKT†", "PointContrast†", "DepthContrast†", "random")  # by mIoU

# Few-shot nuScenes, mIoU by per cent of the labels: runs apart from those of the per-class table (38.3 at 1 %)
EFFICIENCY = {
    "SLidR": {1: 39.0, 5: 52.2, 10: 58.8, 25: 66.2, 100: 74.6},
    "random": {1: 30.3, 5: 47.7, 10: 56.6, 25: 64.8, 100: 74.2},
}

# (stage, data set, per cent of the labels) -> mIoU by method
_MIOU = {
    ("linprobe", "nuscenes", 100): dict(zip(METHODS, (38.8, 36.4, 21.9, 22.1, 8.1), strict=True)),
    ("fewshot", "nuscenes", 1): dict(zip(METHODS, (38.3, 37.8, 32.5, 31.7, 30.3), strict=True)),
    ("fewshot", "kitti", 1): dict(zip(METHODS, (44.6, 43.9, 41.1, 41.5, 39.5), strict=True)),
}

# The same keys -> method -> IoU of classes 1, 2, ... in the order of data.labels.CLASSES
_PER_CLASS = {
    ("fewshot", "nuscenes", 1): {
        "SLidR": "0.0 3.1 15.2 72.0 0.9 18.8 43.2 12.5 14.7 33.3 92.8 29.4 54.0 61.0 80.2 81.9",
        "PPKT†": "0.0 2.2 20.7 75.4 1.2 13.2 45.6 8.5 17.5 38.4 92.5 19.2 52.3 56.8 80.1 80.9",
        "PointContrast†": "0.0 1.0 5.6 67.4 0.0 3.3 31.6 5.6 12.1 30.8 91.7 21.9 48.4 50.8 75.0 74.6",
        "DepthContrast†": "0.0 0.6 6.5 64.7 0.2 5.1 29.0 9.5 12.1 29.9 90.3 17.8 44.4 49.5 73.5 74.0",
        "random": "0.0 0.0 8.1 65.0 0.1 6.6 21.0 9.0 9.3 25.8 89.5 14.8 41.7 48.7 72.4 73.3",
    },
    ("fewshot", "kitti", 1): {
        "SLidR": "92.2 3.0 17.0 22.4 14.3 36.0 22.1 0.0 91.3 30.0 74.7 0.2 87.7 41.2 85.0 58.5 70.4 58.3 42.4",
        "PPKT†": "91.3 1.9 11.2 23.1 12.1 27.4 37.3 0.0 91.3 27.0 74.6 0.3 86.5 38.2 85.3 58.2 71.6 57.7 40.1",
        "PointContrast†": "90.1 4.6 5.4 8.1 9.5 21.9 30.8 0.0 90.7 25.6 73.3 0.3 86.4 39.3 83.7 51.2 70.6 53.6 34.9",
        "DepthContrast†": "91.7 8.8 11.5 19.9 15.4 24.7 0.0 0.0 89.5 21.0 72.9 0.7 85.4 40.6 85.1 51.7 71.3 57.9 39.3",
        "random": "91.2 0.0 9.4 8.0 10.7 21.2 0.0 0.0 89.4 21.4 73.0 1.1 85.3 41.1 84.9 50.1 71.4 55.4 37.6",
    },
}


def columns(stage: str, dataset: str, pct: float, classes: int) -> dict[str, dict]:
    """Method -> scores in 0..1 (`iou [classes]`, nan where not published, and `miou`); empty if nothing is published.

    Args:
        stage: "linprobe" or "fewshot".
        dataset: "nuscenes" or "kitti" (others have no published figures).
        pct: per cent of the training labels.
        classes: number of classes, the ignored one included.
    """
    setting = (stage, dataset, pct)
    nan = float("nan")
    mious = _MIOU.get(setting, {})
    if not mious and (stage, dataset) == ("fewshot", "nuscenes"):
        mious = {method: curve[pct] for method, curve in EFFICIENCY.items() if pct in curve}
    per_class = {
        method: [nan, *(float(value) / 100 for value in values.split())]
        for method, values in _PER_CLASS.get(setting, {}).items()
    }
    return {
        method: {"iou": per_class.get(method, [nan] * classes), "miou": miou / 100} for method, miou in mious.items()
    }
