"""Find other values for an option from its type: valid ones, zeros, and ones that must be refused."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ed_train.config.describe import leaf_types
from ed_train.specs import Bounds

NO_SUCH_VALUE = "no such value"


def other_values(annotation: Any, current: Any) -> list[list[Any]]:
    """Values that an option could have instead of its current one.

    Returns:
        A list of alternatives for each part of the option that can be changed by itself: one list for a number, one
        for each member of a pair of betas. No lists if the type does not say what other values there are.
    """
    if isinstance(current, tuple) and (members := _members(annotation, current)):
        parts = [[_replaced(current, i, v) for v in _scalars(m, current[i])] for i, m in enumerate(members)]
    else:
        parts = [_scalars(annotation, current)]
    return [part for part in parts if part]


def zeros(annotation: Any, default: Any) -> list[Any]:
    """The default with a number in it replaced by 0, once for each number that may be 0 and is not."""
    if isinstance(default, tuple):
        return [
            _replaced(default, i, 0) for i, m in enumerate(_members(annotation, default)) if _has_zero(m, default[i])
        ]
    return [0] if _has_zero(annotation, default) else []


def refused_values(annotation: Any, default: Any) -> list[Any]:
    """Values that an option of this type must not accept: of another type, or just outside its bounds."""
    leaves = leaf_types(annotation)
    values: list[Any] = [] if str in leaves and not _is_literal(annotation) else [NO_SUCH_VALUE]
    values += [{NO_SUCH_VALUE: 0}, float("nan"), float("inf")]
    values += [] if bool in leaves else [True]
    for bounds in _bounds(annotation):
        values += [limit for limit in (bounds.gt, bounds.lt) if limit is not None]
        values += [bounds.ge - 1] if bounds.ge is not None else []
        values += [bounds.le + 1] if bounds.le is not None else []
    if isinstance(default, tuple):
        one = default or (None,)  # of no members: as if it had one
        members = _members(annotation, one)
        values += [_replaced(one, i, v) for i, m in enumerate(members) for v in refused_values(m, one[i])]
    return values


def _scalars(annotation: Any, current: Any) -> list[Any]:
    """Other values for a single value, those that are 0 last."""
    values: list[Any] = []
    for branch in _branches(annotation):
        if branch is bool:
            values += [True, False]
        elif get_origin(branch) is Literal:
            values += get_args(branch)
        elif branch in (int, float):
            values += [v for v in _numbers(branch, current) if _is_within(annotation, v)]
        elif branch is type(None):
            values.append(None)
    return sorted((v for v in values if v != current), key=lambda value: value == 0 and value is not False)


def _numbers(kind: Callable[[float], float], current: Any) -> Iterator[float]:
    """Numbers around the current one, and some usual ones."""
    if isinstance(current, int | float) and not isinstance(current, bool):
        for value in (current * 2, current / 2, (current + 1) / 2, current + 1):
            yield kind(value)
    for usual in (1, 2, 1.5, 0.5, 0.9, 0.1, 1e-2, 1e-4, 10, 100):
        if kind(usual) == usual:
            yield kind(usual)


def _has_zero(annotation: Any, default: Any) -> bool:
    """Whether 0 is allowed and is another value than the default."""
    numeric = {int, float} & leaf_types(annotation)
    return bool(numeric) and default != 0 and default is not False and _is_within(annotation, 0)


def _is_within(annotation: Any, value: float) -> bool:
    return all(
        (b.gt is None or value > b.gt)
        and (b.ge is None or value >= b.ge)
        and (b.lt is None or value < b.lt)
        and (b.le is None or value <= b.le)
        for b in _bounds(annotation)
    )


def _bounds(annotation: Any) -> Iterator[Bounds]:
    """All bounds in an annotation of a single value, also inside ``... | None``."""
    if get_origin(annotation) is Annotated:
        yield from (m for m in annotation.__metadata__ if isinstance(m, Bounds))
        yield from _bounds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _bounds(member)


def _branches(annotation: Any) -> list[Any]:
    """The bare types that a value may have: ``Annotated[float, ...] | None`` is float and NoneType."""
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [branch for member in get_args(annotation) for branch in _branches(member)]
    return [annotation]


def _members(annotation: Any, value: tuple[Any, ...]) -> list[Any]:
    """The annotation of each member of a tuple."""
    for branch in _branches(annotation):
        if get_origin(branch) is tuple:
            members = get_args(branch)
            return [members[0]] * len(value) if members[-1] is Ellipsis else list(members)
    return []


def _replaced(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _is_literal(annotation: Any) -> bool:
    return any(get_origin(branch) is Literal for branch in _branches(annotation))
