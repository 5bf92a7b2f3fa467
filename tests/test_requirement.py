"""The short cut for plain versions agrees with packaging, which knows all of PEP 440."""

from __future__ import annotations

import pytest
from ed_train.requirement import satisfies, split_requirement
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

versions = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda numbers: ".".join(map(str, numbers)))
ranges = st.lists(st.tuples(st.sampled_from([">=", "<=", "<", ">"]), versions), max_size=3)


@given(versions, ranges)
def test_plain_ranges_mean_what_packaging_says(version, parts) -> None:
    text = ", ".join(f"{operator} {bound}" for operator, bound in parts)
    assert satisfies(version, text) == SpecifierSet(text).contains(version)


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("0.1.0", "==0.1.*", True),
        ("0.1.0", "~=0.1", True),
        ("1.0", "!=1.0", False),
        ("0.2.dev1", ">=0.2", False),
        ("0.2rc1", "<0.2", False),
        ("1.0", "", True),
    ],
)
def test_other_ranges_are_left_to_packaging(version, wanted, expected) -> None:
    assert satisfies(version, wanted) is expected


@pytest.mark.parametrize(("version", "wanted"), [("1.0", ">=a"), ("x", ">=1"), ("1.0", "1.0")])
def test_nonsense_raises(version, wanted) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        satisfies(version, wanted)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ed-train<0.2,>=0.1", ("ed-train", "<0.2,>=0.1")),
        ("ed-train (>=0.1)", ("ed-train", ">=0.1")),
        ("ed-train[wandb] >= 0.1", ("ed-train", ">= 0.1")),
        ("ed_train", ("ed_train", "")),
        ("ed-train>=3; extra == 'new'", None),
        ("a b", None),
        ("", None),
    ],
)
def test_requirements_are_taken_apart(text, expected) -> None:
    assert split_requirement(text) == expected
