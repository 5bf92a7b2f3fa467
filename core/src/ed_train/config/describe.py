"""Put types and values into words: for error messages, help texts and generated documents alike."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ed_train.errors import PluginError, printable
from ed_train.specs import Bounds, Help

_WORDS = {float: "a number", int: "an integer", bool: "true or false", str: "a text"}
_PLURALS = {float: "numbers", int: "integers", str: "texts", bool: "booleans"}
_JSON_TYPES = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "list",
    tuple: "list",
    dict: "object",
}


def annotations_of(config_type: type[Any]) -> dict[str, Any]:
    """Field name to full annotation, `Annotated` included.

    Raises:
        PluginError: an annotation names something that its module does not have.
    """
    try:
        hints = get_type_hints(config_type, include_extras=True)
    except Exception as error:
        name = f"{config_type.__module__}.{config_type.__qualname__}"
        advice = "import what the types of options are made of as usual, not under TYPE_CHECKING"
        raise PluginError(f"the types of the options of {name} cannot be read: {error}; {advice}") from error
    return {f.name: hints[f.name] for f in dataclasses.fields(config_type)}


def default_of(config_type: type[Any], name: str) -> Any:
    """The default of a field, whether given as a value or as a factory."""
    field = next(f for f in dataclasses.fields(config_type) if f.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def find_metadata(annotation: Any, kind: type[Any]) -> Any:
    """The first member of an annotation's metadata that is a `kind`, or None."""
    if get_origin(annotation) is Annotated:
        return next((m for m in annotation.__metadata__ if isinstance(m, kind)), None)
    return None


def help_of(annotation: Any) -> str:
    help_ = find_metadata(annotation, Help)
    return help_.text if help_ else ""


def expected(annotation: Any) -> str:
    """What a value of this type looks like, e.g. ``a number > 0``, ``a list of 2 numbers >= 0 and < 1``."""
    base, limits = _strip(annotation)
    if get_origin(base) in (Union, types.UnionType):
        members = [m for m in get_args(base) if m is not type(None)]
        null = ["null"] if len(members) < len(get_args(base)) else []
        if {int, float} <= set(members):  # any integer is a number
            members.remove(int)
        return " or ".join([*map(expected, members), *null]) + limits
    if get_origin(base) is Literal:
        return "one of " + ", ".join(show(v) for v in get_args(base))
    if get_origin(base) is tuple:
        return _expected_list(get_args(base))
    if get_origin(base) is dict:
        return f"an object of {_PLURALS.get(get_args(base)[1], 'values')} by name"
    return _WORDS.get(base, getattr(base, "__name__", str(base))) + limits


def leaf_types(annotation: Any) -> set[Any]:
    """The bare types that an annotation is made of: ``Annotated[float, Bounds(gt=0)] | None`` is float and NoneType."""
    base, _ = _strip(annotation)
    if get_origin(base) is None:
        return {base}
    members = [type(v) for v in get_args(base)] if get_origin(base) is Literal else get_args(base)
    return {leaf for member in members for leaf in leaf_types(member)}


def is_list(annotation: Any) -> bool:
    """Whether a value of this type is a list, or null."""
    base, _ = _strip(annotation)
    if get_origin(base) in (Union, types.UnionType):
        return any(map(is_list, get_args(base)))
    return get_origin(base) is tuple


def _expected_list(members: tuple[Any, ...]) -> str:
    base, limits = _strip(members[0])
    count = "" if members[-1] is Ellipsis else f"{len(members)} "
    return f"a list of {count}{_PLURALS.get(base, 'values')}{limits}"


def _strip(annotation: Any) -> tuple[Any, str]:
    """The bare type of an annotation and its limits in words, with a leading blank."""
    if get_origin(annotation) is not Annotated:
        return annotation, ""
    base, *metadata = get_args(annotation)
    base, inner = _strip(base)
    bounds = [(sign, getattr(m, name)) for m in metadata if isinstance(m, Bounds) for sign, name in _SIGNS]
    words = [f"{sign} {limit}" for sign, limit in bounds if limit is not None]
    return base, inner + (" " + " and ".join(words) if words else "")


_SIGNS = ((">", "gt"), (">=", "ge"), ("<", "lt"), ("<=", "le"))


def show(value: Any) -> str:
    """A value as it would stand in a JSON file, cut where it is long."""
    try:
        text = printable(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def show_with_type(value: Any) -> str:
    """``"1e-6" (string)``: the value and what JSON calls it."""
    kind = "" if value is None else f" ({_JSON_TYPES.get(type(value), type(value).__name__)})"
    return show(value) + kind
