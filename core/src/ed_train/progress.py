"""Progress of what takes long before training: a bar in a terminal, a line every half a minute elsewhere."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


def progress_bar(what: str, total: int, unit: str, *, shown: bool, **settings: Any) -> tqdm[Any]:
    """A bar on standard error.

    Args:
        what: what is done, e.g. ``encoding images``.
        total: of how many.
        unit: one of these.
        shown: False in every process but the main one.
        **settings: more of tqdm's.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(desc=what, total=total, unit=unit, disable=not shown, **settings)
    if "delay" in settings:  # no sooner than the first line that is due
        settings["delay"] = SECONDS_BETWEEN_LINES
    return tqdm(
        desc=what, total=total, unit=unit, disable=not shown, file=_Lines(), mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=SECONDS_BETWEEN_LINES, bar_format="{desc}: {n_fmt} of {total_fmt}, {remaining} left", **settings,
    )  # fmt: skip


class _Lines:
    """Standard error for a bar that is no bar: each state in a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            with suppress(OSError):  # whoever read it is gone, or the disk behind it is full: no reason to stop
                sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()
