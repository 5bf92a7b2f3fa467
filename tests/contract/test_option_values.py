"""Other values of an option, and wrong ones, from its type alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from ed_train.config.validate import validated
from ed_train.specs import Bounds, Fraction, Help, NonNegative, Positive
from ed_train.testing.option_values import other_values, refused_values, zeros

ABOVE_ONE = Annotated[float, Bounds(gt=1)]
TYPES: list[tuple[Any, Any]] = [
    (Positive, 1e-3),
    (Annotated[NonNegative, Help("with help")], 0.0),
    (Annotated[int, Bounds(ge=1)], 1),
    (Annotated[int, Bounds(ge=0, le=1)], 0),
    (ABOVE_ONE | None, None),
    (bool, True),
    (bool | None, None),
    (Literal["left", "right"], "left"),
    (tuple[Fraction, Fraction], (0.9, 0.999)),
    (tuple[Fraction, ...], (0.9,)),
]


def accepts(annotation: Any, value: Any) -> bool:
    """Whether an option of this type takes the value."""
    from dataclasses import make_dataclass

    return not validated(make_dataclass("Config", [("option", annotation)]), {"option": value})[1]


@pytest.mark.parametrize(("annotation", "default"), TYPES)
def test_other_values_are_valid_and_others(annotation: Any, default: Any) -> None:
    parts = other_values(annotation, default)
    assert len(parts) == (len(default) if isinstance(default, tuple) else 1)
    for value in (value for part in parts for value in part):
        assert value != default
        assert accepts(annotation, value), value


@pytest.mark.parametrize(("annotation", "default"), TYPES)
def test_refused_values_are_refused(annotation: Any, default: Any) -> None:
    values = refused_values(annotation, default)
    assert values
    assert not any(accepts(annotation, value) for value in values)


@pytest.mark.parametrize(("annotation", "default"), [(str, "a"), (Any, None), (tuple[str, ...], ())])
def test_a_type_that_says_nothing_has_no_other_values(annotation: Any, default: Any) -> None:
    assert other_values(annotation, default) == []


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        (NonNegative, 0.1, [0]), (NonNegative, 0.0, []), (Positive, 0.1, []), (Fraction | None, None, [0]),
        (tuple[Fraction, Fraction], (0.9, 0.999), [(0, 0.999), (0.9, 0)]), (bool, True, []), (int | None, 3, [0]),
    ],
)  # fmt: skip
def test_zeros_are_those_that_the_bounds_allow(annotation: Any, default: Any, expected: list[Any]) -> None:
    assert zeros(annotation, default) == expected
