"""Values of keys as they are typed, by the annotations of their keys."""

import types
import typing
from typing import Literal


def from_text(value: object, annotation: object) -> object:
    """A value as pydantic takes it; what is no text stays as it is.

    Text is taken as it was typed: a name or a path means itself. `none` is None for a key that may be none, a choice
    is found by its name, and several values are written `80,144` or `[80, 144]`.
    """
    plain = plain_type(annotation)
    several = typing.get_origin(plain) in (tuple, list)
    if several and isinstance(value, int | float):
        return [value]
    if not isinstance(value, str):
        return value
    if value.lower() == "none" and type(None) in typing.get_args(_without_notes(annotation)):
        return None
    if several:
        items = value.strip().removeprefix("[").removesuffix("]")
        types_ = typing.get_args(plain) or (str, ...)
        return [
            from_text(item.strip(), types_[min(i, len(types_) - 1)] if types_[-1] is not ... else types_[0])
            for i, item in enumerate(items.split(",") if items.strip() else ())
        ]
    if typing.get_origin(plain) is Literal:
        return next((choice for choice in typing.get_args(plain) if str(choice) == value), value)
    return value


def to_text(value: object) -> str:
    """A value as it can be typed; the inverse of `from_text`."""
    if isinstance(value, tuple | list):
        return ",".join(map(to_text, value)) or "[]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _without_notes(annotation: object) -> object:
    """`Annotated[X, ...]` -> X."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def plain_type(annotation: object) -> object:
    """The one type of a key, for one that may be none as well; of several others, the union."""
    annotation = _without_notes(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        others = [part for part in typing.get_args(annotation) if part is not type(None)]
        return plain_type(others[0]) if len(others) == 1 else annotation
    return annotation


def choices(annotation: object) -> tuple:
    """What a key can be, if it is one of a few."""
    plain = plain_type(annotation)
    return typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
