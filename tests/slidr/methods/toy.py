"""A pretraining with everything that a method may have: a momentum network, a queue, a batch norm, random draws.

It is named from outside the package, as a user would name theirs: `--method tests.slidr.methods.toy:Toy`.
"""

import copy

import torch
from torch.nn import functional as F

from data.datasets.dataset import DataSet, Reader
from data.frame import Batch, Needs
from data.samples.single import Single
from slidr.config import Count, MethodSettings, Share, key
from slidr.methods.method import Method
from slidr.training import distributed
from slidr.training.learner import Step


class Toy(Method):
    """Each scan finds itself in a momentum copy's eyes, among the scans of the last steps."""

    class Settings(MethodSettings):
        """Tell scans apart (a toy)."""

        queue: Count = key(6, "scans that are remembered")
        keep: Share = key(0.9, "share of the momentum network that a step keeps")

    needs = Needs()
    best = None

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.student = self.make_student(None)
        self.projection = torch.nn.Linear(self.student.network.channels, 8)
        self.momentum = copy.deepcopy(torch.nn.ModuleList([self.student, self.projection])).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(settings.queue, 8), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def sample(self, reader: Reader, train: bool) -> Single:
        return Single(reader, self.needs)

    def clouds(self, student, projection, batch: Batch) -> torch.Tensor:
        features, voxels = student(batch)
        rows = batch.batch_index[voxels.first]
        parts = [features[rows == i].mean(0) for i in range(len(batch.ids))]
        return F.normalize(projection(torch.stack(parts)), dim=1)

    def forward(self, batch: Batch) -> Step:
        own = self.clouds(self.student, self.projection, batch)
        with torch.no_grad():
            target = self.clouds(*self.momentum, batch)
        noise = 0.01 * torch.rand_like(own)  # depends on the step's seed alone
        positive = ((own + noise) * target).sum(1, keepdim=True)
        logits = torch.cat((positive, own @ self.queue.T), 1) / 0.1
        loss = F.cross_entropy(logits, torch.zeros(len(own), dtype=torch.int64, device=own.device))
        return Step(loss, {"positive": positive.detach().mean()}, {"target": target})

    def after_step(self, step: Step, progress: float) -> None:
        keep = self.settings.keep
        own = (*self.student.parameters(), *self.projection.parameters())
        for slow, fast in zip(self.momentum.parameters(), own, strict=True):
            slow.mul_(keep).add_(fast, alpha=1 - keep)
        targets, _ = distributed.gathered(step.carry["target"])
        places = (self.place + torch.arange(len(targets), device=targets.device)) % len(self.queue)
        self.queue[places] = targets
        self.place.add_(len(targets)).remainder_(len(self.queue))
