"""A recipe (YAML) and the command line become settings here, and settings become YAML and `--help`."""

import difflib
import reprlib
import types
import typing
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ValidationError

from data.disk import InputError
from slidr.config.settings import Pretrain, WithRun

RECIPES = Path(__file__).parents[1] / "configs"

_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: `2024-13-01` looks like a date and is none
_SHORT = reprlib.Repr()  # of values in sentences: a few lines of YAML aliases can stand for gigabytes
_SHORT.maxlevel, _SHORT.maxstring = 2, 100


def load(settings_type: type[BaseModel], arguments: list[str], recipe: str | None = None) -> BaseModel:
    """Settings of one stage from its command-line arguments: `[cfg.yaml] [--key value ...]`.

    Args:
        settings_type: the stage's settings class.
        arguments: the words after the stage's name.
        recipe: prefix of the recipe taken when no YAML is named ("slidr" -> slidr_<dataset>.yaml); None = none.

    A stage that shares keys with pretraining (superpixels, show) takes its part of a pretraining recipe.
    Raises InputError for an unreadable file, an unknown key or a value of the wrong type.
    """
    words = list(arguments)
    path = Path(words.pop(0)) if words and not words[0].startswith("-") else None
    flags = _flags(words, switches={n for n, f in settings_type.model_fields.items() if f.annotation is bool})
    if path is None and recipe:
        dataset = flags.get("dataset", settings_type.model_fields["dataset"].default)
        candidate = RECIPES / f"{recipe}_{dataset}.yaml"
        path = candidate if candidate.exists() else None
    values = read_yaml(path) if path else {}
    if recipe == "slidr" and settings_type is not Pretrain:
        values = {k: v for k, v in values.items() if k in settings_type.model_fields or k not in Pretrain.model_fields}
    sources = dict.fromkeys(values, str(path)) | dict.fromkeys(flags, "the command line")
    return validate(settings_type, values | flags, sources)


def validate(settings_type: type[BaseModel], values: dict, sources: dict[str, str] | None = None) -> BaseModel:
    """`values` as settings; InputError names the first bad key, where it came from, and the nearest known key."""
    known = list(settings_type.model_fields)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys are {', '.join(known)}."
            raise InputError(f"{(sources or {}).get(name, 'settings')}: there is no key `{name}`; {hint}")
    try:
        return settings_type(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise InputError(f"`--{name}` is needed: {settings_type.model_fields[name].description}.") from None
        where = (sources or {}).get(name, "settings")
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{where}: `{name}` cannot be {_SHORT.repr(first['input'])}: {reason}.") from None


def read_yaml(path: Path) -> dict:
    """A YAML mapping by the safe loader; InputError if the file is missing, broken or no mapping."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        shipped = ", ".join(sorted(p.name for p in RECIPES.glob("*.yaml")))
        raise InputError(
            f"cannot read {path}: {error.strerror}; name a YAML file, e.g. one of {RECIPES}: {shipped}."
        ) from error
    except _NO_YAML as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise InputError(f"{path} is no valid YAML{line}; write one `key: value` a line.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no `key: value` lines; see `run.py STAGE --help` for the keys.")
    return values


def _flags(words: list[str], switches: set[str]) -> dict[str, object]:
    flags: dict[str, object] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise InputError(f"the command line: `{word}` stands alone; settings are written `--key value`.")
        name, equals, value = word[2:].partition("=")
        if not equals and name in switches and (not words or words[0].startswith("--")):
            value = "true"
        elif not equals:
            if not words:
                raise InputError(f"the command line: `{word}` lacks its value; settings are written `--key value`.")
            value = words.pop(0)
        try:
            flags[name.replace("-", "_")] = yaml.safe_load(value)
        except _NO_YAML:
            flags[name.replace("-", "_")] = value
    return flags


def to_yaml(settings: BaseModel) -> str:
    """Every key with its value: a complete recipe that can be run again."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def what_decides(settings: WithRun) -> dict:
    """The settings that decide a run's numbers, as YAML has them: those that must be equal for it to go on."""
    return {name: value for name, value in yaml.safe_load(to_yaml(settings)).items() if name not in _DECIDES_NOTHING}


_DECIDES_NOTHING = {
    *("name", "output", "root", "superpixels_folder", "weights_folder"),  # places
    *("threads", "workers", "device", "resume", "replay", "checkpoint_minutes", "keep_checkpoints"),  # means
    *("max_bad_frames", "max_bad_steps", "pictures", "compare", "validate_every"),
}


def describe(settings_type: type[BaseModel]) -> str:
    """The text of `run.py STAGE --help`: what the stage does, then every key with default, unit and meaning."""
    lines = [settings_type.__doc__.strip(), ""]
    for name, info in settings_type.model_fields.items():
        default = "needed" if info.is_required() else "none" if info.default is None else info.default
        if isinstance(default, tuple):
            default = f"[{', '.join(map(str, default))}]"
        choices = _choices(info.annotation)
        meaning = info.description + (f" ({' | '.join(map(str, choices))})" if choices else "")
        lines.append(f"  --{name:<20} {default!s:<24} {meaning}")
    return "\n".join(lines)


def _choices(annotation) -> tuple[str, ...]:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((c for c in map(_choices, typing.get_args(annotation)) if c), ())
    return ()
