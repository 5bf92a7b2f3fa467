"""The same run with several seeds: how much of a difference between optimizers is luck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, stdev, variance
from typing import Any

from ed_train.compare.folder import DONE
from ed_train.compare.members import Member
from ed_train.compare.summary import MISSING, Row, Summary, aligned, number
from ed_train.config.describe import show
from ed_train.errors import Problem

FLAG = "--seeds"
LARGEST = 2**32 - 1
STANDARD_ERRORS = 2.0
"""Means that are this many standard errors of their difference apart count as different."""
HEADINGS = ("over seeds", "runs", "best, mean", "± std", "lowest", "highest", "final, mean", "± std")


@dataclass(frozen=True)
class Group:
    """The finished runs of a member with each seed.

    Attributes:
        label: what they have in common.
        rows: those that have a loss.
        of: how many there are to be.
    """

    label: str
    rows: tuple[Row, ...]
    of: int

    @property
    def best(self) -> list[float]:
        """The lowest loss of each."""
        return [row.best[0] for row in self.rows if row.best]

    @property
    def final(self) -> list[float]:
        """The last loss of each."""
        return [row.final for row in self.rows if row.final is not None]


def parse_seeds(text: str | None) -> tuple[tuple[int, ...], list[Problem]]:
    """``1,2,3``; empty if nothing is given."""
    if text is None:
        return (), []
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if part.isascii() and part.isdecimal() and int(part) <= LARGEST]
    if len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        expected = f"different whole numbers from 0 to {LARGEST}, e.g. 1,2,3"
        return (), [Problem(FLAG, "", f"got {show(text)}; expected {expected}")]
    return tuple(seeds), []


def with_seeds(members: Sequence[Member], seeds: Sequence[int]) -> list[Member]:
    """Each member once with each seed; as they are, if there is none."""
    if not seeds:
        return list(members)
    return [_with_seed(member, seed) for member in members for seed in seeds]


def _with_seed(member: Member, seed: int) -> Member:
    train = replace(member.run.train, seed=seed)
    run = replace(member.run, train=train, sources={**member.run.sources, "seed": FLAG})
    return replace(member, label=f"{member.label} seed {seed}", run=run, seed_of=member.label)


def groups(summary: Summary) -> list[Group]:
    """The members that were run with several seeds, from the lowest mean to the highest."""
    labels = dict.fromkeys(row.member.seed_of for row in summary.rows if row.member.seed_of)
    found = []
    for label in labels:
        rows = [row for row in summary.rows if row.member.seed_of == label]
        found.append(Group(label, tuple(row for row in rows if row.best and row.result.status == DONE), len(rows)))
    return sorted(found, key=lambda group: fmean(group.best) if group.best else float("inf"))


def group_cells(group: Group) -> tuple[str, ...]:
    """A group's cells, under `HEADINGS`."""
    best, final = group.best, group.final
    return (
        group.label,
        f"{len(best)} of {group.of}",
        _mean(best),
        _spread(best),
        number(min(best, default=None)),
        number(max(best, default=None)),
        _mean(final),
        _spread(final),
    )


def lead_of_seeds(summary: Summary) -> str:
    """The outcome over seeds in a sentence or two; empty where nothing was run with two of them."""
    several = [group for group in groups(summary) if len(group.best) > 1]
    if not several:
        return ""
    first, *others = several
    words = f"Lowest mean {summary.measure} over seeds: {_mean(first.best)} ± {_spread(first.best)} with {first.label}."
    close = [f"{group.label} ({_mean(group.best)} ± {_spread(group.best)})" for group in others if _close(first, group)]
    if close:
        words += f" Not clearly worse, by less than two standard errors: {', '.join(close)}."
    return words


def _close(one: Group, other: Group) -> bool:
    """Whether the means are as near as luck may have it (Welch's standard error of a difference)."""
    error = sqrt(sum(variance(group.best) / len(group.best) for group in (one, other)))
    return abs(fmean(one.best) - fmean(other.best)) < STANDARD_ERRORS * error


def group_lines(summary: Summary) -> Iterator[str]:
    """The table of all groups, for a terminal; nothing if there are none."""
    if found := groups(summary):
        yield ""
        yield from aligned([HEADINGS, *map(group_cells, found)])
        if lead := lead_of_seeds(summary):
            yield lead


def groups_as_json(summary: Summary) -> list[dict[str, Any]]:
    """All groups as JSON values."""
    return [
        {
            "label": group.label,
            "seeds": [row.member.run.train.seed for row in group.rows],
            "best": group.best,
            "best_mean": fmean(group.best) if group.best else None,
            "best_std": stdev(group.best) if len(group.best) > 1 else None,
            "final": group.final,
        }
        for group in groups(summary)
    ]


def _mean(values: Sequence[float]) -> str:
    return number(fmean(values)) if values else MISSING


def _spread(values: Sequence[float]) -> str:
    """The standard deviation of the sample (n - 1)."""
    return number(stdev(values)) if len(values) > 1 else MISSING
