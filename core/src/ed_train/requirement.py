"""Compare versions with requirements such as ``ed-train>=0.1,<0.2``.

The packaging library knows all of PEP 440, and its import takes as long as all the rest of ``--list-optimizers``. Plain
comparisons of plain versions, which is what plugins have, are therefore done here, and everything else by packaging.
"""

from __future__ import annotations

import re

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?((?:[<>=!~][^;()]*)?)\)?\s*(;.*)?\Z")
_PLAIN = re.compile(r"\s*(>=|<=|<|>)\s*(\d+(?:\.\d+)*)\s*\Z")
_RELEASE = re.compile(r"\d+(?:\.\d+)*\Z")


def split_requirement(text: str) -> tuple[str, str] | None:
    """``("ed-train", ">=0.1,<0.2")``: name and range of a requirement, or None if it is not one for every machine."""
    match = _REQUIREMENT.match(text.strip())
    return (match[1], match[2].strip()) if match and not match[3] else None


def satisfies(version: str, requirement_range: str) -> bool:
    """Whether a version lies in a range such as ``>=0.1,<0.2``; an empty range allows every version.

    Raises:
        ValueError: the range, or the version, is none that PEP 440 knows.
    """
    plain = [_PLAIN.match(part) for part in requirement_range.split(",")] if requirement_range else []
    if _RELEASE.match(version) and all(plain):
        return all(_compare(match[1], _numbers(version), _numbers(match[2])) for match in plain if match)
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(requirement_range).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion) as error:
        raise ValueError(str(error)) from error


def _compare(operator: str, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return {">=": a >= b, "<=": a <= b, ">": a > b, "<": a < b}[operator]


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers without zeros at the end: 1.0 and 1 are one version."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
