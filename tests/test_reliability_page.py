"""The table of docs/reliability.md names tests that exist, and all tests of tests/reliability."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(test_\w+)`", PAGE))


def defined(files: list[Path]) -> set[str]:
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)}


def test_every_test_that_the_table_names_exists() -> None:
    assert len(NAMED) > 40
    assert NAMED - defined(sorted(TESTS.rglob("test_*.py"))) == set()


def test_every_test_of_reliability_is_in_the_table() -> None:
    assert defined(sorted((TESTS / "reliability").glob("test_*.py"))) - NAMED == set()


def test_every_line_of_the_table_is_proven() -> None:
    rows = [line for line in PAGE.partition("| fault |")[2].splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    assert [row for row in rows if "`test_" not in row] == []
