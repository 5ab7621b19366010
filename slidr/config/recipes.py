"""Recipes: YAML files of `key: value` lines. Those that come along lie in slidr/configs, one folder a stage."""

import difflib
import os
import reprlib
from pathlib import Path

import yaml

from data.files import InputError, open_file

MOST_BYTES = 20_000  # of a recipe; PyYAML takes a second for so many
RECIPES = Path(__file__).parents[1] / "configs"

_BROKEN = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: `2024-13-01` looks like a date and is none
_SHORT = reprlib.Repr()  # a few lines of YAML aliases can stand for gigabytes
_SHORT.maxlevel, _SHORT.maxstring = 2, 100


def short(value: object) -> str:
    """A value as an error shows it: cut if it is long."""
    return _SHORT.repr(value)


def short_name(name: object) -> str:
    """A name as an error shows it, between backticks."""
    return short(str(name))[1:-1]


def nearest(word: object, known: list[str]) -> str | None:
    """The known word that is most like this one, if any is."""
    return next(iter(difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)), None)


def shipped(folder: str | None) -> dict[str, Path]:
    """Bare name -> file of the recipes in slidr/configs/<folder>; none for None."""
    return {path.stem: path for path in sorted((RECIPES / folder).glob("*.yaml"))} if folder else {}


def shown(path: Path) -> str:
    """A recipe's path as it is printed: that of a shipped one begins with slidr/configs."""
    return str(path.relative_to(RECIPES.parents[1]) if path.is_relative_to(RECIPES) else path)


def find_recipe(word: str, folder: str | None) -> Path:
    """The file that `word` names: a shipped recipe by its bare name, or a path. InputError if there is no such file."""
    known = shipped(folder)
    path = known.get(word, Path(word))
    if os.path.exists(path):
        return path
    near = nearest(Path(word).stem, list(known))
    if near:
        raise InputError(f"there is no recipe `{short_name(word)}`; did you mean {near}?")
    names = f" or one of {', '.join(known)}" if known else ""
    raise InputError(f"there is no recipe `{short_name(word)}`; name a YAML file{names}.")


def read_recipe(path: Path, folder: str | None) -> tuple[dict, dict[str, str]]:
    """The values of a recipe, those of its `base` included, and for each key the file that states it.

    A recipe with a base states what differs from it. The base lies in the same folder, or is a shipped one of the
    stage, and has no base itself. Raises InputError if either file cannot be used.
    """
    values = read_yaml(path)
    sources = dict.fromkeys(values, shown(path))
    if "base" not in values:
        return values, sources
    name = str(values.pop("base"))
    neighbour = path.parent / f"{name}.yaml"
    base = neighbour if os.path.isfile(neighbour) else shipped(folder).get(name)  # Path's own raises for long names
    if Path(name).name != name or base is None:
        raise InputError(
            f"{shown(path)}: there is no recipe `{short_name(name)}` beside it to be its `base`; write a bare name."
        )
    below = read_yaml(base)
    if "base" in below:
        raise InputError(f"{shown(path)}: its base {shown(base)} has a base itself; name that one and state the rest.")
    return below | values, dict.fromkeys(below, shown(base)) | sources


def read_yaml(path: Path, *, follow: bool = True) -> dict:
    """A YAML mapping by the safe loader; `follow` as in `data.files.open_file`.

    Raises InputError if the file is missing, too long, broken, no mapping, or repeats a key.
    """
    with open_file(path, MOST_BYTES, follow=follow) as file:
        content = file.read()  # as bytes, so that PyYAML sees a byte order mark and the locale plays no part
    try:
        values = yaml.safe_load(content)
        repeated = _repeated(content)
    except _BROKEN as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{shown(path)} is no valid YAML{line}; write one `key: value` a line.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{shown(path)} holds no `key: value` lines; see `run.py STAGE --help` for the keys.")
    if repeated:
        raise InputError(f"{shown(path)} states `{short_name(repeated)}` twice; remove one of the two.")
    return values


def _repeated(content: bytes) -> str | None:
    """The first top-level key that is stated twice: YAML would silently take the last."""
    root, seen = yaml.compose(content, yaml.SafeLoader), set()
    for name, _ in root.value if isinstance(root, yaml.MappingNode) else ():
        if isinstance(name, yaml.ScalarNode):
            if name.value in seen:
                return name.value
            seen.add(name.value)
    return None
