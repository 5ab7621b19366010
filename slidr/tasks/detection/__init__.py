"""Detection: boxes around objects. Targets and losses, the metrics, the task, and what is trained for it."""

from slidr.tasks.detection.learner import DetectionLearner
from slidr.tasks.detection.task import Detection, detection_loader, open_with_boxes, with_boxes

__all__ = ["Detection", "DetectionLearner", "detection_loader", "open_with_boxes", "with_boxes"]
