"""Tasks that learn from a share of the labels: which share, and how much each share is worth."""

from collections.abc import Callable
from pathlib import Path

from data.datasets.dataset import Reader
from data.files import InputError
from data.subsets import Selection, choose_subset, write_subset
from slidr.config import FewLabels
from slidr.networks.model_file import read_model
from slidr.repeats import Run as Stage
from slidr.repeats import point_name, seed_name, sweep
from slidr.tasks.published import Published
from slidr.tasks.results import published_rows
from slidr.tasks.scores import Outcome, Scores
from slidr.tasks.start import RANDOM, choose_weights, network_name, shape_of
from slidr.training import Run


def one_weights(settings: FewLabels) -> None:
    """Raises InputError if the settings name several weights, which a sweep alone takes."""
    if len(settings.several_weights) > 1 and not Path(settings.weights).exists():
        raise InputError(f"there is no file {settings.weights}, and several --weights are for --sweep: name one.")


def share_of(reader: Reader, settings: FewLabels) -> Selection:
    """The frames of the training split that complete settings leave."""
    return choose_subset(reader, settings.pct, settings.subset, settings.subset_seed)


def record_share(log: Run, settings: FewLabels, share: Selection) -> None:
    """Write the frames that are trained on to the run's subset.txt (the first process alone)."""
    if not log.first:
        return
    remark = f"the list {settings.subset}"
    if settings.subset in ("scenes", "frames"):
        which = "every n-th" if settings.subset_seed is None else f"drawn by seed {settings.subset_seed}"
        remark = f"{settings.pct:g} % of the {settings.subset}, {which}"
    write_subset(log.folder / "subset.txt", share, f"{settings.dataset}, split {settings.train_split}: {remark}")


def sweep_shares(
    stage: str,
    run: Stage,
    settings: FewLabels,
    complete: Callable[[FewLabels], FewLabels],
    open_split: Callable[[FewLabels, str], Reader],
) -> Outcome:
    """Annotation efficiency: fine-tune on every share of `settings.sweep`, from each of the weights and from random.

    The random network has the shape of the first pretrained one.

    Args:
        stage, run: what is run, and its name.
        settings: of the sweep.
        complete: fills in what the settings leave open.
        open_split: opens a split of the data; not before it is known that there are weights.

    Raises InputError if the subset is a list, or if two weights have one name.
    """
    if settings.subset not in (None, "scenes", "frames"):
        raise InputError("`sweep` takes shares of the scenes or frames; drop the list given as `subset`.")
    name = settings.name or f"{settings.dataset}-sweep"
    several = settings.several_weights
    if len(several) < 2:
        first = seed_name(point_name(name, "pretrained", settings.sweep[0]), settings.seed)
        several = [choose_weights(stage, settings, first)[0]]
    pretrained = [weights for weights in several if weights != RANDOM]
    records = [read_model(Path(weights)).pretraining for weights in pretrained]
    methods = [record.method if record else "unknown" for record in records]
    names = [f"{m}-{network_name(w).replace('/', '-')}" for m, w in zip(methods, pretrained, strict=True)]
    if len(set(names)) < len(names):
        raise InputError(f"of the weights of {', '.join(names)}, two have one name: rename the folder of a run.")
    starts = dict(zip(names if len(names) > 1 else ["pretrained"], pretrained, strict=False)) | {"random": RANDOM}
    reader, points = open_split(settings, settings.val_split), {}
    for line, weights in starts.items():
        shape = shape_of(pretrained[0] if weights == RANDOM and pretrained else weights, settings)
        alike = settings.model_copy(update=shape | {"sweep": None, "weights": weights})
        points[line] = {pct: complete(alike.model_copy(update={"pct": pct})) for pct in settings.sweep}

    def compare(scores: Scores, model: Path) -> Published | None:
        found = published_rows(settings, reader, "sweep", scores, model)
        return found and found.of_methods({"random", *methods})

    folder = settings.output / stage / name
    sweep(stage, run, points, folder, compare)
    return Outcome(None, folder)
