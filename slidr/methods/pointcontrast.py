"""PointContrast†: a point finds itself in another scan of the same place (Xie et al., ECCV 2020).

The † is SLidR's reproduction for driving scans (supplement, C.2). What it leaves open is chosen as in PointContrast's
code, but for the 64 channels and the temperature, which are SLidR's.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.augment import AugmentSettings
from data.datasets.dataset import DataSet, Reader
from data.frame import Needs
from data.samples.scans import ScanBatch, Scans
from slidr import pictures
from slidr.config import Count, MethodSettings, NonNegative, Positive, Share, WithCloudAugmentation, key
from slidr.losses import gathered_infonce, hardest_contrastive, infonce
from slidr.methods.method import Method
from slidr.training.learner import Step


class PointContrast(Method):
    """Two scans of one place, registered; a point tells its counterpart from those of thousands of others."""

    class Settings(MethodSettings, WithCloudAugmentation):
        """Tell points of a scan apart by another scan of the same place (PointContrast†; SLidR, C.2)."""

        batch: Count = key(8, "pairs of scans a step")
        lr: Positive = key(1.0, "learning rate")
        feature_size: Count = key(64, "channels of the features that are compared (PointContrast's own code: 32)")
        min_distance: NonNegative = key(10.0, "least distance of the two scans of a pair, in m")
        max_distance: Positive | None = key(
            None, "largest distance of the two scans, in m; none = any (those with too few matches are drawn again)"
        )
        match_distance: Positive = key(0.1, "points of the two scans closer than this are one place, in m")
        min_matches: Count = key(1024, "a pair of scans with fewer matches is drawn again")
        cuboid: Share = key(0.2, "largest side of the dropped cuboid as a share of the scan's range; 0 = none")
        loss: Literal["infonce", "hardest"] = key("infonce", "PointInfoNCE, or hardest-contrastive")
        pairs: Count = key(4096, "matches drawn at random from each batch, no two from one voxel of the first scans")
        temperature: Positive = key(0.07, "infonce: temperature (SLidR's; PointContrast's own scripts: 0.4)")
        gather_negatives: bool = key(
            False, "infonce, several processes: the matches of all are negatives, not each one's own"
        )
        hard_negatives: Count = key(
            256, "hardest: voxels a scan, drawn at random from each batch, of which the nearest is the negative"
        )

    needs = Needs(pose=True)

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.student = self.make_student(settings.feature_size, normalize=True)
        self.trained_on = ""

    def sample(self, reader: Reader, train: bool) -> Scans:
        """Two scans at least `min_distance` apart, in validation the same ones each time; both moved and cut."""
        s = self.settings
        augment = AugmentSettings(crop=None, cuboid=s.cuboid) if s.augment else None
        scans = Scans(reader, augment, s.min_distance, s.max_distance, s.match_distance, s.min_matches)
        if train:
            self.trained_on = scans.describe()
        return scans

    def draw_pairs(self, matches: torch.Tensor) -> torch.Tensor:
        """Of matches `[M, 2]` at most `pairs` with distinct queries (rows of the first column), each with one key."""
        mixed = matches[torch.randperm(len(matches), device=matches.device)]
        mixed = mixed[mixed[:, 0].argsort(stable=True)]  # by query; the first of its keys is any of them
        queries = mixed[mixed[:, 0].diff(prepend=mixed.new_full((1,), -1)) > 0]
        return queries[torch.randperm(len(queries), device=queries.device)[: self.settings.pairs]]

    def forward(self, batch: ScanBatch) -> Step:
        """Contrast of matched voxels; the views go through the network one after the other, as in PointContrast."""
        a, voxels_a = self.student(batch.first)
        b, voxels_b = self.student(batch.second)
        matches = torch.stack((voxels_a.inverse[batch.matches[:, 0]], voxels_b.inverse[batch.matches[:, 1]]), 1)
        pairs = self.draw_pairs(matches)
        loss, accuracy = self.contrast(a.float(), b.float(), pairs, matches, scans=len(batch.first.ids))
        return Step(loss, {"pairs": len(pairs), "accuracy": accuracy})

    def contrast(
        self, a: torch.Tensor, b: torch.Tensor, pairs: torch.Tensor, matches: torch.Tensor, scans: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, accuracy) of the pairs `[P, 2]`, out of the matches `[M, 2]`, of voxels with features a and b."""
        s = self.settings
        if s.loss == "hardest":
            drawn = (torch.randperm(len(f), device=f.device)[: scans * s.hard_negatives] for f in (a, b))
            return hardest_contrastive(a, b, pairs, matches, tuple(drawn))
        contrast = gathered_infonce if s.gather_negatives and self.training else infonce
        return contrast(a[pairs[:, 0]], b[pairs[:, 1]], s.temperature)

    def describe(self) -> dict[str, str]:
        """The student, the scans and the loss."""
        s = self.settings
        matches = f"{s.pairs:,} matches a step, within {s.match_distance:g} m"
        return super().describe() | {"scans": self.trained_on, "loss": f"{s.loss}, {matches}"}

    @torch.no_grad()
    def watch(self, reader: Reader, folder: Path, suffix: str = "") -> list[str]:
        """The split's first pair of scans, registered, and how similar the features of its matches are."""
        scans = self.sample(reader, train=False)
        pair, _ = scans.draw(0, np.random.default_rng([self.settings.seed, 0, 0]))
        batch = scans.collate([pair]).to(next(self.parameters()).device)
        (a, voxels_a), (b, voxels_b) = self.eval().student(batch.first), self.student(batch.second)
        rows_a, rows_b = voxels_a.inverse[batch.matches[:, 0]], voxels_b.inverse[batch.matches[:, 1]]
        cosine = (a[rows_a].float() * b[rows_b].float()).sum(1)
        pictures.scan_pair(pair, cosine.cpu().numpy(), folder / f"matches{suffix}.png")
        return [f"matches{suffix}.png"]
