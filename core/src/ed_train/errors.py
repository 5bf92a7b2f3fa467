"""Errors that a user of ed-train can meet. Their text is the user interface: it says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class EdTrainError(Exception):
    """Base of every error that ed-train raises on purpose."""


def printable(text: str) -> str:
    """The text in one line, with control characters and whatever else has no glyph escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Problem:
    """One thing that a user gave wrongly.

    Attributes:
        where: file and line, or flag, e.g. ``train.json:12`` or ``--lr``; empty where there is no such place.
        key: the key as the user wrote it, dotted where nested, e.g. ``base.betas``; empty for a whole file.
        message: the value, what is allowed and the next step.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return printable(": ".join(part for part in (self.where, self.key, self.message) if part))


class ConfigError(EdTrainError):
    """Wrong user input. Carries every problem that was found, not only the first."""

    def __init__(self, problems: Iterable[Problem] | str) -> None:
        self.problems = (Problem("", "", problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class PluginError(EdTrainError):
    """A plugin breaks its contract; names the distribution, so that its author can be told."""


class CheckpointError(EdTrainError):
    """A checkpoint cannot be written or read."""


class NonFiniteWeightsError(CheckpointError):
    """A checkpoint is not written since weights are NaN or infinite: there is no point in going on."""
