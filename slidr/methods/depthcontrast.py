"""DepthContrast†: a scan is recognised in another view of it, by a point and a voxel network (Zhang et al., ICCV 2021).

The † is SLidR's reproduction for driving scans (supplement, C.3). What it leaves open is chosen here as follows: the
point network is PointRCNN's; the heads have no batch norm, as published; a network takes the intensity as stored; a key
joins its queue after the step.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.datasets.dataset import DataSet, Reader
from data.frame import Batch, Needs
from data.samples.views import Views, ViewsBatch
from slidr import pictures
from slidr.config import Count, MethodSettings, NonNegative, Positive, Share, key
from slidr.losses import queue_infonce
from slidr.methods.method import Method
from slidr.methods.momentum import MomentumCopy, Queue
from slidr.networks.pointnet2 import PointNet2
from slidr.networks.student import Student, make_head
from slidr.pooling import max_by_cloud
from slidr.training.learner import Step

CHANNELS = 128  # of what is compared


class DepthContrast(Method):
    """Each network tells a scan from those of the last steps, by its own momentum copy's view of it and the other's.

    A view is one vector: the maximum over all points or voxels, through a head. Only the voxel network goes on.
    """

    class Settings(MethodSettings):
        """Recognise a scan in another view of it, with a point and a voxel network (DepthContrast†; SLidR, C.3)."""

        batch: Count = key(8, "scans a step")
        lr: Positive = key(1e-3, "learning rate")
        final_lr: NonNegative = key(1e-6, "cosine, warmup_cosine: learning rate at the end")
        dampening: Share = key(0.0, "SGD: dampening of the momentum (none in the very first step, as in torch)")
        temperature: Positive = key(0.1, "temperature of InfoNCE")
        queue: Count = key(60_000, "scans that each network's queue remembers as negatives")
        encoder_momentum: Share = key(0.999, "share of itself that a momentum network keeps at each step")
        cross: bool = key(
            True, "each network also finds the other's view of a scan; false = its own alone, the losses of weight 1"
        )
        scan_points: Count = key(50_000, "points of a scan that are used, drawn at random")
        points: Count = key(16_384, "points that the point network sees of them")

    needs = Needs()
    best = None  # a loss counts by what is in the queues just then

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.point, self.voxel = PointEncoder(), VoxelEncoder(self.make_student(None))
        self.slow_point, self.slow_voxel = MomentumCopy(self.point), MomentumCopy(self.voxel)
        self.point_queue, self.voxel_queue = (Queue(settings.queue, CHANNELS) for _ in range(2))

    @property
    def student(self) -> Student:
        """The voxel network."""
        return self.voxel.network

    def sample(self, reader: Reader, train: bool) -> Views:
        """Four views of a scan, each augmented on its own; validation sees the same ones every time."""
        points = self.settings.points
        views = {"point_query": points, "point_key": points, "voxel_query": None, "voxel_key": None}
        return Views(reader, views, most=self.settings.scan_points)

    def forward(self, batch: ViewsBatch) -> Step:
        """InfoNCE from each query to the scan's key, among the keys of the queue: within a network, and across.

        `accuracy` is the share that finds its key among the queue's, `accuracy_in_batch` among those of the same step.
        Where the first is high and the second no better than chance, new keys are told from old ones, not scan from
        scan: the momentum networks move too fast for their queues.
        """
        point, voxel = self.point(batch["point_query"]), self.voxel(batch["voxel_query"])
        point_key, voxel_key = self.slow_point(batch["point_key"]), self.slow_voxel(batch["voxel_key"])
        points, voxels = (point_key, self.point_queue.keys), (voxel_key, self.voxel_queue.keys)
        terms = {"point": (point, *points), "voxel": (voxel, *voxels)}
        if self.settings.cross:
            terms |= {"point_to_voxel": (point, *voxels), "voxel_to_point": (voxel, *points)}
        found = {name: queue_infonce(*term, self.settings.temperature) for name, term in terms.items()}
        loss = sum(loss for loss, _ in found.values()) * (2 / len(found))  # weights .5; 1 where each is on its own
        numbers = {f"loss_{name}": loss.detach() for name, (loss, _) in found.items()}
        numbers["accuracy"] = sum(accuracy for _, accuracy in found.values()) / len(found)
        own = torch.arange(len(point), device=point.device)
        hits = [(q @ k.T).argmax(1) == own for q, k in ((point, point_key), (voxel, voxel_key))]
        numbers["accuracy_in_batch"] = torch.cat(hits).float().mean()
        return Step(loss, numbers, {"point_key": point_key, "voxel_key": voxel_key})

    def after_step(self, step: Step, progress: float) -> None:
        """The momentum networks follow, the keys of the step join the queues."""
        for slow, fast in ((self.slow_point, self.point), (self.slow_voxel, self.voxel)):
            slow.follow(fast, self.settings.encoder_momentum)
        self.point_queue.push(step.carry["point_key"])
        self.voxel_queue.push(step.carry["voxel_key"])

    def watch(self, reader: Reader, folder: Path, suffix: str = "") -> list[str]:
        """The four views of the first scan, from above."""
        item, _ = self.sample(reader, False).draw(0, np.random.default_rng([self.settings.seed, 0, 0]))
        name = f"views{suffix}.png"
        pictures.views({view.replace("_", " "): frame.points for view, frame in item.items()}, folder / name)
        return [name]

    def describe(self) -> dict[str, str]:
        """The student, the point network and what is contrasted."""
        size = sum(p.numel() for p in self.point.network.parameters())
        terms = "within and across the networks" if self.settings.cross else "within each network"
        return super().describe() | {
            "point network": f"PointNet++, {size:,} parameters, {self.settings.points:,} points a scan",
            "contrast": f"{terms}, against queues of {self.settings.queue:,} scans",
        }


class PointEncoder(nn.Module):
    """PointNet++, the maximum over a cloud's points, a head: one unit vector a cloud, `[B, 128]`."""

    def __init__(self):
        super().__init__()
        self.network = PointNet2()
        self.head = make_head(PointNet2.channels, CHANNELS, hidden=CHANNELS)

    def forward(self, view: Batch) -> torch.Tensor:
        """The view's clouds must have equally many points."""
        xyz, features = (x.unflatten(0, (len(view.ids), -1)) for x in (view.points[:, :3], view.features))
        return unit(self.head(self.network(xyz, features).max(1).values))


class VoxelEncoder(nn.Module):
    """The student, the maximum over a cloud's voxels, a head: one unit vector a cloud, `[B, 128]`."""

    def __init__(self, student: Student):
        super().__init__()
        self.network = student
        self.head = make_head(student.network.channels, CHANNELS, hidden=CHANNELS)

    def forward(self, view: Batch) -> torch.Tensor:
        features, voxels = self.network(view)
        return unit(self.head(max_by_cloud(features, voxels.coordinates[:, 0], len(view.ids))))


def unit(rows: torch.Tensor) -> torch.Tensor:
    """L2-normalised in float32 at least."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
