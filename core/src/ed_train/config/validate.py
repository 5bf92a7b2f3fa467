"""Check plain values against a config dataclass: pydantic does the checking, the words are ours."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from ed_train.config.describe import annotations_of, expected, show_with_type
from ed_train.errors import PluginError, Problem
from ed_train.specs import Bounds

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Where = Callable[[str], str]
"""Maps a key to the file and line, or the flag, that it came from."""


def validated(
    config_type: type[Any], values: Mapping[str, Any], *, key_prefix: str = "", where: Where = lambda key: ""
) -> tuple[Any, list[Problem], list[str]]:
    """Make a `config_type` of `values`; keys that are absent keep their defaults.

    Numbers must be finite, nothing is converted between types (but an integer is a number), unknown keys are refused.

    Returns:
        The config, or None if there are problems; the problems, one per key; the warnings that the config's own
        checks raised with `warnings.warn`.

    Raises:
        PluginError: the options have types that cannot be checked.
    """
    from pydantic import ValidationError

    values = {key: _tuples(value) for key, value in values.items()}
    try:
        given = _checker(config_type).validate_python(values)  # type: ignore[arg-type]  # is hashable for all mypy says
    except ValidationError as error:
        names = dict.fromkeys(str(e["loc"][0]) for e in error.errors(include_url=False, include_input=False))
        problems = [_problem(config_type, name, values, key_prefix, where) for name in names]
        return None, problems, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return config_type(**given), [], [str(w.message) for w in caught]
        except ValueError as error:
            first = next(iter(values), "")
            return None, [Problem(where(first), key_prefix.rstrip("."), str(error))], []


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that nobody knows, with the nearest known one."""
    known = sorted(known)
    close = get_close_matches(key, known, n=1, cutoff=0.6) or get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"unknown key; did you mean {close[0]!r}?"
    return "unknown key; " + (f"known are {', '.join(known)}" if len(known) <= 20 else "ed-train --help lists all")


def json_schema(config_type: type[Any]) -> dict[str, Any]:
    """The JSON Schema of an object of options, with types and ranges alone.

    Raises:
        PluginError: the options have types that cannot be checked, or not be described.
    """
    from pydantic.errors import PydanticInvalidForJsonSchema

    try:
        return _checker(config_type).json_schema()  # type: ignore[arg-type]  # is hashable for all mypy says
    except PydanticInvalidForJsonSchema as error:
        name = f"{config_type.__module__}.{config_type.__qualname__}"
        raise PluginError(f"the types of the options of {name} cannot be described: {error.message}") from error


@cache
def _checker(config_type: type[Any]) -> TypeAdapter[dict[str, Any]]:
    """A check of a dictionary of options; of a dictionary, since a pydantic model has names that no field may have.

    Raises:
        PluginError: the options have types that cannot be checked.
    """
    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict  # typing's own does for pydantic from Python 3.12 on

    try:
        options = {name: _for_pydantic(annotation) for name, annotation in annotations_of(config_type).items()}
        make: Any = TypedDict  # whose members type checkers want to read in the source
        typed_dict = make(config_type.__name__, options, total=False)
        typed_dict.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
        return TypeAdapter(typed_dict)
    except PluginError:
        raise
    except Exception as error:
        name = f"{config_type.__module__}.{config_type.__qualname__}"
        raise PluginError(f"the types of the options of {name} cannot be checked: {error}") from error


def _for_pydantic(annotation: Any) -> Any:
    """The same annotation with our `Bounds` as pydantic's constraints."""
    from pydantic import Field

    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [m for m in members[1:] if isinstance(m, Bounds)]
        annotation = _for_pydantic(members[0])
        for b in bounds:
            annotation = Annotated[annotation, Field(gt=b.gt, ge=b.ge, lt=b.lt, le=b.le)]
        return annotation
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_for_pydantic, members))]  # noqa: UP007 (made at run time)
    if origin is tuple:
        return tuple[tuple(m if m is Ellipsis else _for_pydantic(m) for m in members)]  # type: ignore[misc]
    return annotation


def _problem(config_type: type[Any], name: str, values: Mapping[str, Any], key_prefix: str, where: Where) -> Problem:
    known = annotations_of(config_type)
    if name not in known:
        return Problem(where(name), key_prefix + name, unknown_key(name, known))
    message = f"got {show_with_type(values[name])}; expected {expected(known[name])}"
    if isinstance(values[name], str) and _is_number(values[name]) and "number" in message.rpartition("expected")[2]:
        message += f", e.g. {values[name].strip()} (without quotes)"
    return Problem(where(name), key_prefix + name, message)


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def _tuples(value: Any) -> Any:
    """JSON arrays as tuples: config dataclasses are frozen, and so should their values be."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
