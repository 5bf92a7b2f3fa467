"""The choice of pictures to validate on: the same everywhere, stable, and in the proportion that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from ed_train.data.captions import Caption
from ed_train.data.scan import ImageItem
from ed_train.data.split import chosen


def items(count: int, root: str = "/data", **changes: float) -> list[ImageItem]:
    settings = {"multiply": 1.0, "flip_p": 0.0, "cond_dropout": 0.0, **changes}
    return [ImageItem(Path(f"{root}/{n:03d}.jpg"), 64, 64, Caption("x"), **settings) for n in range(count)]


def names(
    found: list[ImageItem], seed: int = 1, share: float = 0.2, root: str = "/data", purpose: str = "val"
) -> set[str]:
    return {found[i].path.name for i in chosen(found, Path(root), proportion=share, seed=seed, purpose=purpose)}


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(100, 0.15, 15), (20, 0.5, 10), (3, 0.01, 1), (7, 1.0, 7), (0, 0.5, 0)]
)
def test_it_is_the_proportion_and_at_least_one(count, share, expected) -> None:
    assert len(names(items(count), share=share)) == expected


def test_it_depends_on_seed_and_place_alone() -> None:
    there = items(100, root="/elsewhere/moved")
    assert names(items(100)) == names(items(100)[::-1]) == names(there, root="/elsewhere/moved")
    assert names(items(100), seed=2) != names(items(100)) != names(items(100), purpose="train")
    assert names(items(100, multiply=3.0)) == names(items(100, multiply=0.5)) == names(items(100))


def test_added_pictures_leave_almost_all_others_where_they_were() -> None:
    before, after = names(items(200)), names(items(220))
    assert len(before - after) <= 4
    assert len(after) == 44


def test_pictures_that_are_never_used_are_never_chosen() -> None:
    unused = items(50, multiply=0.0)
    assert names(unused) == set()
    assert names([*unused, *items(60)[50:]], share=1.0) == {f"{n:03d}.jpg" for n in range(50, 60)}
