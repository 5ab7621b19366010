"""A recipe and the command line become the settings of a stage; settings become YAML."""

import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from data.files import InputError
from slidr.config.recipes import find_recipe, nearest, read_recipe, shipped, short, short_name
from slidr.config.settings import MethodSettings
from slidr.config.values import from_text, plain_type

COMMAND_LINE = "the command line"

SettingsOf = Callable[[str], type[MethodSettings]]


@dataclass(frozen=True)
class Given:
    """What a stage was given, before it is checked.

    settings_type: the class that it must fit.
    values: key -> value, from the recipe or the command line.
    sources: key -> where the value comes from.
    recipe: the file, if there is one.
    """

    settings_type: type[BaseModel]
    values: dict[str, object]
    sources: dict[str, str]
    recipe: Path | None


def load(
    settings_type: type[BaseModel] | None,
    arguments: list[str],
    recipes: str | None = None,
    settings_of: SettingsOf | None = None,
    methods: Iterable[str] = (),
) -> BaseModel:
    """Settings of one stage from its arguments: `[recipe] [--key value ...]`. What comes later wins.

    Args:
        settings_type: the stage's settings class; None = that of the pretraining method which the arguments name.
        arguments: the words after the stage's name.
        recipes: folder under slidr/configs with the stage's recipes. The data set's own is taken where none is named:
            <data set>.yaml, or <method>_<data set>.yaml for "pretrain"; None = the stage has no recipes.
        settings_of: gives the settings class of a method; needed where `recipes` is "pretrain".
        methods: names of the registered methods, to say which one a key belongs to.

    A stage of its own class that takes pretraining recipes (superpixels, show) uses the keys that it knows.
    Raises InputError for an unreadable file, an unknown key or a value of the wrong type.
    """
    given = gather(settings_type, arguments, recipes, settings_of)
    return validate(given.settings_type, given.values, given.sources, settings_of, methods)


def gather(
    settings_type: type[BaseModel] | None, arguments: list[str], recipes: str | None, settings_of: SettingsOf | None
) -> Given:
    """The class, recipe and values that `load` checks. Raises InputError for what cannot be read."""
    words = list(arguments)
    named = words.pop(0) if words and not words[0].startswith("-") else None
    flags = _flags(words)
    default = {name: field.default for name, field in (settings_type or MethodSettings).model_fields.items()}
    if named is not None:
        path = find_recipe(named, recipes)
    elif recipes:
        dataset = flags.get("dataset", default["dataset"])
        method = flags.get("method") or MethodSettings.model_fields["method"].default
        path = shipped(recipes).get(f"{method}_{dataset}" if recipes == "pretrain" else dataset)
    else:
        path = None
    values, sources = read_recipe(path, recipes) if path else ({}, {})

    if recipes == "pretrain":
        stated = ({} if settings_type else flags).get("method") or values.get("method")
        method = stated or MethodSettings.model_fields["method"].default
        if not isinstance(method, str):
            raise InputError(f"{sources.get('method')}: `method` cannot be {short(method)}: write its name.")
        pretraining = settings_of(method)
        if settings_type is None:
            settings_type = pretraining
            values["method"] = method
        else:
            known = settings_type.model_fields
            values = {name: v for name, v in values.items() if name in known or name not in pretraining.model_fields}
    switches = {name for name, field in settings_type.model_fields.items() if plain_type(field.annotation) is bool}
    for name, value in flags.items():
        if value is None and name in switches:
            flags[name] = "true"
        elif not value:
            raise InputError(
                f"{COMMAND_LINE}: `--{short_name(name)}` lacks its value; settings are written `--key value`."
            )
    return Given(settings_type, values | flags, sources | dict.fromkeys(flags, COMMAND_LINE), path)


def validate(
    settings_type: type[BaseModel],
    values: dict[str, object],
    sources: dict[str, str] | None = None,
    settings_of: SettingsOf | None = None,
    methods: Iterable[str] = (),
    complete: bool = True,
) -> BaseModel:
    """`values` as settings; text is read by the type of its key (`from_text`).

    Args:
        settings_type: what they must be.
        values: by key.
        sources: key -> where its value comes from, for errors.
        settings_of, methods: as for `load`.
        complete: False = the result simply lacks values that are needed and missing.

    Raises InputError, which names the first bad key, where it came from, and the nearest known key.
    """
    sources, fields = sources or {}, settings_type.model_fields
    for name in values:
        if name not in fields:
            reason = _unknown(name, settings_type, values.get("method"), settings_of, methods)
            raise InputError(f"{sources.get(name, 'settings')}: {reason}")
    for name, value in values.items():
        texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        if any(isinstance(text, str) and re.search(r"[\x00-\x1f\x7f-\x9f]", text) for text in texts):
            where = sources.get(name, "settings")
            raise InputError(f"{where}: `{name}` cannot be {short(value)}: it has control characters.")
    read = {name: from_text(value, fields[name].annotation) for name, value in values.items()}
    try:
        return settings_type(**read)
    except ValidationError as error:
        errors = error.errors()
    missing = [e["loc"][0] for e in errors if e["type"] == "missing" and len(e["loc"]) == 1]
    if len(missing) == len(errors) and not complete:
        return settings_type.model_construct(**read)
    wrong = next((e for e in errors if e["loc"] and e["loc"][0] not in missing), errors[0])
    reason = wrong["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not wrong["loc"]:
        raise InputError(f"the settings do not fit together: {reason}.")
    name = wrong["loc"][0]
    if name in missing:
        raise InputError(f"`--{name}` is needed: {fields[name].description}.")
    parts = typing.get_args(plain_type(fields[name].annotation))
    if wrong["type"] in ("missing", "too_long") and ... not in parts:
        reason = f"it takes {len(parts)} values"
    raise InputError(f"{sources.get(name, 'settings')}: `{name}` cannot be {short(values[name])}: {reason}.")


def _unknown(
    name: object,
    settings_type: type[BaseModel],
    method: object,
    settings_of: SettingsOf | None,
    methods: Iterable[str],
) -> str:
    """What is wrong with a key that the settings do not have."""
    key = short_name(name)
    if settings_of and issubclass(settings_type, MethodSettings):
        owners = [owner for owner in methods if name in settings_of(owner).model_fields]
        if owners:
            whose = f"the method {owners[0]}" if len(owners) == 1 else f"the methods {', '.join(owners)}"
            return f"`{key}` belongs to {whose}, not to {method}; choose another --method or leave the key out."
    near = nearest(name, list(settings_type.model_fields))
    return f"there is no key `{key}`; " + (f"did you mean `{near}`?" if near else "--help lists the known ones.")


def _flags(words: list[str]) -> dict[str, str | None]:
    """Key -> text, or None for a key that stands alone. Of a key given twice the last one counts."""
    flags: dict[str, str | None] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise InputError(
                f"{COMMAND_LINE}: `{short_name(word)}` stands alone; a recipe comes first, settings are written "
                "`--key value`."
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else None
        flags[name.replace("-", "_")] = value
    return flags


def to_yaml(settings: BaseModel) -> str:
    """Every key with its value: a complete recipe that can be run again."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def identity_keys(settings: BaseModel) -> dict:
    """The settings that decide a run's numbers, as YAML has them: those that must be equal for it to go on."""
    fields = type(settings).model_fields
    return {
        name: value
        for name, value in yaml.safe_load(to_yaml(settings)).items()
        if (fields[name].json_schema_extra or {}).get("decides", True)
    }
