"""Put types and values into words: for error messages, help texts and generated documents alike."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ed_train.errors import PluginError, printable
from ed_train.specs import Bounds, Help

_WORDS = {float: "a number", int: "an integer", bool: "true or false", str: "a text", Any: "anything"}
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
        PluginError: an annotation names something that its module does not have, or a type that JSON does not have.
    """
    name = f"{config_type.__module__}.{config_type.__qualname__}"
    try:
        hints = get_type_hints(config_type, include_extras=True)
    except Exception as error:
        advice = "import what the types of options are made of as usual, not under TYPE_CHECKING"
        raise PluginError(f"the types of the options of {name} cannot be read: {error}; {advice}") from error
    annotations = {f.name: hints[f.name] for f in dataclasses.fields(config_type)}
    for option, annotation in annotations.items():
        if not _is_of_json(annotation):
            kind = _type_name(_strip(annotation)[0])
            raise PluginError(f"the option {option!r} of {name} has the type {kind}; expected {_OPTION_TYPES}")
    return annotations


_OPTION_TYPES = "float, int, bool, str, a Literal of texts, or a tuple of these, such as tuple[float, ...]; or None"
_LEAVES = {bool, int, float, str, types.NoneType, Any, Ellipsis}
_CONTAINERS = {Union, types.UnionType, tuple, dict}


def _is_of_json(annotation: Any) -> bool:
    """Whether a type is one of those that messages and schemas have words for; a dataclass is a type of the core's."""
    base, _ = _strip(annotation)
    origin = get_origin(base)
    if origin is None:
        return base in _LEAVES or dataclasses.is_dataclass(base)
    return origin is Literal or (origin in _CONTAINERS and all(map(_is_of_json, get_args(base))))


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


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
    words = "numbers" if leaf_types(base) == {int, float} else _PLURALS.get(base, "values")
    return f"a list of {count}{words}{limits}"


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
