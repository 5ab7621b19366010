"""Nearest neighbours as a task: what the labels of a scene's first frame say of its later ones (supplement, A.1)."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from data.datasets.dataset import Reader
from data.files import InputError
from data.frame import Batch, Needs, collate
from data.progress import Progress
from data.samples import Notes, without_unmeasured
from slidr import pictures
from slidr.inference import Network
from slidr.tasks.scores import NAN, Scores
from slidr.tasks.task import read_with_image
from slidr.training import distributed

BLOCK = 2**26  # cosines held at a time: 256 MiB


class Neighbours:
    """Binary k-NN classifiers, one a class, on the features of a network (the contract: `slidr.tasks.task.Task`).

    The data base are labelled points of the scene's first frame. A point's probability of a class is the share of its
    k neighbours, by cosine, that have it.

    Args:
        network: gives the features; any model.pt's.
        reader: the frames of one scene, in order.
        classes: names of the data set's classes.
        k: neighbours.
        per_class: how many points of each of the data set's classes are kept in the data base; None = all.
        seed: draws them.

    Raises InputError for a class that the data set does not have, or a first frame of fewer than k labelled points.
    """

    needs = Needs(labels=True)

    def __init__(
        self, network: Network, reader: Reader, classes: tuple[str, ...], k: int, per_class: int | None, seed: int
    ):
        self.network, self.reader, self.classes, self.k = network, reader, classes, k
        names = reader.dataset.classes
        for name in classes:
            if name not in names[1:]:
                raise InputError(f"{reader.dataset.name} has no class `{name}`; it has {', '.join(names[1:])}.")
        first = without_unmeasured(reader.read(0, self.needs), Notes())
        labels = first.labels if first.labels is not None else np.zeros(len(first.points), np.uint8)
        rows = subsample(labels, per_class, seed)
        if len(rows) < k:
            raise InputError(
                f"the first frame {first.id} has {len(rows)} labelled points to find {k} neighbours among; choose "
                "another --scene or --split, or a smaller --k."
            )
        self._ids = torch.tensor([names.index(name) for name in classes], device=network.device)
        found = network.features(collate([first], reader.intensity_offset, reader.intensity_scale))
        self._features = found[torch.from_numpy(rows).to(found.device)].float()
        kept = torch.from_numpy(labels[rows]).to(found.device)
        self._member = kept[:, None] == self._ids
        counts = ", ".join(f"{n} {name}" for n, name in zip(self._member.sum(0).tolist(), classes, strict=True))
        self.database = f"{len(rows):,} of the {np.count_nonzero(labels):,} labelled points of {first.id} ({counts})"

    def count(self, batch: Batch) -> torch.Tensor:
        """How many of each point's k neighbours have each class: `[N, classes]` int64; none of a point that is NaN."""
        features = self.network.features(batch).float()
        counts = count_neighbours(features, self._features, self._member, self.k)
        return counts * features.isfinite().all(1, keepdim=True)

    def evaluate(self, loader: Iterable[Batch], keep: Callable[[str, np.ndarray], None] | None = None) -> Scores:
        """Average precision of each class over the labelled points of all frames, and their mean, in per cent.

        Args:
            loader: batches of one later frame each.
            keep: called with each frame's id and its points' probabilities `[N, classes]`.

        Those of each frame are in `details["frames"]`; None or nan where no point has the class.
        """
        total = torch.zeros(2, len(self.classes), self.k + 1, dtype=torch.int64)
        frames = {}
        for batch in Progress(loader, desc="neighbours", leave=False, delay=10, disable=distributed.rank() > 0):
            batch = batch.to(self.network.device)
            counts = self.count(batch)
            if keep:
                keep(batch.ids[0], (counts / self.k).cpu().numpy())
            if batch.labels is not None:
                known = batch.labels > 0
                found = histograms(counts[known], batch.labels[known, None] == self._ids, self.k)
                total += found
                frames[batch.ids[0]] = {n: None if np.isnan(v) else v for n, v in self._precisions(found).items()}
        precisions = self._precisions(distributed.total(total))
        there = [value for value in precisions.values() if not np.isnan(value)]
        mean = float(np.mean(there)) if there else NAN
        return Scores(precisions | {"mAP": mean}, primary="mAP", measure="AP", details={"frames": frames})

    def _precisions(self, found: torch.Tensor) -> dict[str, float]:
        return {name: average_precision(*found[:, i]) for i, name in enumerate(self.classes)}

    def draw(self, index: int, folder: Path, name: str) -> list[str]:
        """The probabilities of a frame's points, from above and in the first camera if there is one."""
        frame = self.reader.read(index, self.needs)
        counts = self.count(collate([frame], self.reader.intensity_offset, self.reader.intensity_scale))
        return self.draw_probabilities(index, (counts / self.k).cpu().numpy(), folder, name)

    def draw_probabilities(self, index: int, probabilities: np.ndarray, folder: Path, name: str) -> list[str]:
        """As `draw`, of probabilities `[N, classes]` that are known."""
        frame = read_with_image(self.reader, index, self.needs)
        title = f"{self.reader.scenes[index]}, frame {index + 1} of {len(self.reader)}: {frame.id}"
        pictures.class_probabilities(frame, probabilities, self.classes, title, folder / f"neighbours_{name}.png")
        return [f"neighbours_{name}.png"]


def subsample(labels: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """Rows, ascending, of the points with a label (above 0): of each class all, or `per_class` drawn by the seed."""
    if per_class is None:
        return np.flatnonzero(labels)
    rng, rows = np.random.default_rng(seed), []
    for label in np.unique(labels[labels > 0]):
        rows.append(rng.permutation(np.flatnonzero(labels == label))[:per_class])
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, int)


def count_neighbours(queries: torch.Tensor, database: torch.Tensor, member: torch.Tensor, k: int) -> torch.Tensor:
    """How many of each query's k nearest rows of the data base, by inner product, are members: `[N, K]` int64.

    Args:
        queries: `[N, C]`.
        database: `[D, C]`, D >= k.
        member: `[D, K]` bool.

    Block by block: BLOCK inner products at a time.
    """
    rows = max(1, BLOCK // len(database))
    blocks = [member[(block @ database.T).topk(k, dim=1, sorted=False).indices].sum(1) for block in queries.split(rows)]
    return torch.cat(blocks) if blocks else torch.zeros(0, member.shape[1], dtype=torch.int64)


def histograms(counts: torch.Tensor, positive: torch.Tensor, k: int) -> torch.Tensor:
    """Positive points, and all points, of each count 0..k, of each class: `[2, K, k + 1]` int64, on the CPU.

    Args:
        counts, positive: `[N, K]`.
    """
    classes = counts.shape[1]
    places = counts + (k + 1) * torch.arange(classes, device=counts.device)
    both = [torch.bincount(some.flatten(), minlength=classes * (k + 1)) for some in (places[positive], places)]
    return torch.stack(both).view(2, classes, k + 1).cpu()


def average_precision(positives: torch.Tensor, points: torch.Tensor) -> float:
    """Sum over thresholds of precision times the gain in recall, in per cent (scikit-learn's definition).

    Args:
        positives, points: `[thresholds]` how many positive points, and how many in all, have each score, ascending.

    nan if none is positive.
    """
    gain, hits, found = positives.flip(0).double(), positives.flip(0).cumsum(0), points.flip(0).cumsum(0)
    return float(100 * (gain * hits / found.clamp_min(1)).sum() / hits[-1]) if hits[-1] else NAN
