"""How well objects are detected, scored as the data set's own benchmark does: KITTI's metric and nuScenes'."""

from typing import Protocol

from data.boxes import Boxes, Detections
from data.datasets.dataset import Reader
from slidr.tasks.detection.kitti import KittiScores
from slidr.tasks.detection.nuscenes import NuScenesScores
from slidr.tasks.scores import Scores

__all__ = ["Detections", "KittiScores", "Metric", "NuScenesScores", "metric_of"]


class Metric(Protocol):
    """Frames are added in any order, by any process, once or several times the same, and then scored. Picklable."""

    frames: dict[str, tuple]  # by id: what is kept of each

    def add(self, frame_id: str, found: Detections, truth: Boxes, ignore: Boxes) -> None:
        """Keep what is found in a frame and what is there (`Frame.boxes`, `Frame.ignore`)."""
        ...

    def merge(self, others: "list[Metric]") -> None:
        """Add the frames of others, those of other processes, say."""
        ...

    def scores(self) -> Scores:
        """Average precisions by class in per cent, nan of a class that does not occur; the primary one is mAP."""
        ...


def metric_of(reader: Reader) -> Metric:
    """The metric of a reader's data set (`DataSet.metric`), without frames yet."""
    if reader.dataset.metric == "kitti":
        return KittiScores(reader.dataset.boxes, reader)
    return NuScenesScores(reader.dataset.boxes)
