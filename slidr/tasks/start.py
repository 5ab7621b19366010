"""The weights that a trained task begins with."""

from pathlib import Path

from data.files import InputError
from slidr import config
from slidr.methods import settings_of
from slidr.networks.model_file import Pretraining, load_student, newest_model, read_model
from slidr.networks.student import Student, StudentSpec
from slidr.training import distributed
from slidr.training.run_folder import begun_settings

RANDOM = "random"


def choose_weights(stage: str, settings: config.Downstream, run: str | None = None) -> tuple[str, str]:
    """The weights to begin with, named so that the run can be repeated, and the same with where they come from.

    Where the settings name none: those that the run began with, if it goes on, whatever has been trained since; else
    the newest pretraining.

    Args:
        run: the run that may go on, if it is called something else than `settings.name` (the first of several).

    Raises InputError if there is no pretraining.
    """
    if settings.weights is not None:
        return settings.weights, settings.weights
    asked = settings.model_copy(update={"name": run, "resume": True}) if run else settings
    weights, source = "", "as the run began"
    if distributed.rank() == 0:  # the processes must not look while one of them writes
        weights = begun_settings(stage, asked, but="weights").get("weights") or ""
        if not weights:
            weights, source = str(newest_model(settings.output, "pretrain") or ""), "the newest pretraining"
    weights, source = distributed.from_first(f"{weights}\n{source}").split("\n")
    if not weights:
        raise InputError(
            f"there is no pretraining under {settings.output / 'pretrain'}: run `python run.py pretrain` first, "
            "or pass --weights random or a model.pt."
        )
    return weights, f"{weights} ({source})"


def pretrained_model(weights: str | None, output: Path) -> Path:
    """The model.pt that is named, or the newest pretraining under `output`; InputError if there is none."""
    path = Path(weights) if weights else newest_model(output, "pretrain")
    if path is None:
        raise InputError(
            f"there is no pretraining under {output / 'pretrain'}: run `python run.py pretrain` first, or pass "
            "--weights."
        )
    return path


def starting_student(settings: config.Downstream, out_channels: int | None) -> tuple[Student, Pretraining | None]:
    """The network of the settings' weights with a new last layer, if any, and how it was pretrained, if known.

    Raises InputError if the weights cannot be used, or have another architecture or other voxels than the settings.
    """
    asked = {n: getattr(settings, n) for n in StudentSpec.model_fields if getattr(settings, n) is not None}
    if settings.weights == RANDOM:
        recipe = config.load(None, ["--dataset", settings.dataset], "pretrain", settings_of)
        spec = StudentSpec(**{name: getattr(recipe, name) for name in StudentSpec.model_fields} | asked)
        return Student(spec, out_channels, settings.bn_momentum), None
    path = Path(settings.weights)
    model = read_model(path)
    return load_student(model, path, out_channels, settings.bn_momentum, **asked), model.pretraining


def shape_of(weights: str, settings: config.Downstream) -> dict:
    """What the settings leave open of a network's shape, as the weights have it: a random network is like it then."""
    if weights == RANDOM:
        return {}
    spec = read_model(Path(weights)).spec
    return {n: getattr(spec, n) for n in StudentSpec.model_fields if getattr(settings, n) is None}


def network_name(weights: str) -> str:
    """What a network is called in tables: its run's name, `<run>/best` for its best.pt, a lone file's own name."""
    path = Path(weights)
    name = "/".join(part for part in (path.parent.name, "" if path.name == "model.pt" else path.stem) if part)
    return name or path.stem
