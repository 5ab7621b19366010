"""The text of `run.py STAGE --help`."""

import shlex
from collections.abc import Iterable

from pydantic import BaseModel

from slidr.config.parsing import Given, SettingsOf, gather, validate
from slidr.config.recipes import shipped, shown
from slidr.config.settings import MethodSettings
from slidr.config.values import choices, to_text


def help_text(
    settings_type: type[BaseModel] | None,
    arguments: list[str],
    recipes: str | None = None,
    settings_of: SettingsOf | None = None,
    methods: Iterable[str] = (),
) -> str:
    """What a stage does, which recipe it takes, and every key with the value that it would run with.

    The arguments of this function are those of `load`; keys that are needed may be missing. Raises InputError.
    """
    given = gather(settings_type, arguments, recipes, settings_of)
    settings = validate(given.settings_type, given.values, given.sources, settings_of, methods, complete=False)
    about = [given.settings_type.__doc__.strip()]
    if given.recipe:
        named = arguments and not arguments[0].startswith("-")
        which = "Recipe" if named else "Without another recipe"
        about.append("\n".join([f"{which}: {shown(given.recipe)}", *_head(given)]))
    elif recipes:
        about.append("There is no recipe of this data set: without one, the values are the defaults.")
    if recipes:
        about.append(f"Recipes by name: {', '.join(shipped(recipes))}")
    return "\n\n".join([*about, describe(settings)])


def describe(settings: BaseModel) -> str:
    """A line for each key: its value, as it can be typed, its meaning and what it can be.

    A key without a value (of `model_construct`) is shown as needed.
    """
    fields = type(settings).model_fields
    lines = {}
    for name, field in fields.items():
        value = shlex.quote(to_text(getattr(settings, name))) if hasattr(settings, name) else "needed"
        few = choices(field.annotation)
        meaning = field.description + (f" ({' | '.join(map(str, few))})" if few else "")
        lines[name] = f"  --{name:<20} {value:<24} {meaning}"
    if not isinstance(settings, MethodSettings):
        return "\n".join(lines.values())
    common = [lines.pop("method"), *(lines.pop(name) for name in MethodSettings.model_fields if name in lines)]
    return "\n".join(["Keys of every method:", *common, "", f"Keys of {settings.method}:", *lines.values()])


def _head(given: Given) -> list[str]:
    """The comment that a recipe begins with."""
    lines = []
    for line in given.recipe.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append("  " + line.lstrip("# "))
    return lines
