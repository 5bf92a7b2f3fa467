"""The outcome of a comparison in numbers and words: for the terminal, the report and JSON alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ed_train.compare.collect import CLEAR, Curve, Result, judged_curve, main_set, start_value
from ed_train.compare.folder import DIVERGED, DONE, UNUSABLE
from ed_train.compare.learning_rates import short
from ed_train.compare.members import Member
from ed_train.config.validation import TRAIN, VAL

MISSING = "–"


@dataclass(frozen=True)
class Row:
    """A run's outcome.

    Attributes:
        best: the lowest loss that it is judged by, and the step.
        change: the best loss against the one before training, as a share of it; negative is better.
        verdict: in words.
    """

    member: Member
    result: Result
    curve: Curve
    best: tuple[float, int] | None
    final: float | None
    change: float | None
    verdict: str

    @property
    def lr_at_end(self) -> float | None:
        """The step size of the last step that was logged: d times lr for a learning-rate-free optimizer."""
        curve = self.result.effective_lr.get(self.member.main.name, Curve())
        return curve.last


@dataclass(frozen=True)
class Summary:
    """The outcome of all.

    Attributes:
        rows: in the order of the members.
        measured: the name of the validation set; None if runs are judged by the loss of training.
        start: the loss before training; None if it is not known.
    """

    rows: tuple[Row, ...]
    measured: str | None
    start: float | None

    @property
    def ranked(self) -> list[Row]:
        """The finished rows from the lowest loss to the highest, then the others, those without a loss last."""
        return sorted(self.rows, key=lambda row: (row.result.status != DONE, row.best is None, row.best or (0.0, 0)))

    @property
    def measure(self) -> str:
        """What the runs are judged by."""
        if self.measured is None:
            return "training loss"
        if self.measured == TRAIN:
            return "training loss with fixed noise"
        return "validation loss" + (f" ({self.measured})" if self.measured != VAL else "")


def summarize(members: Sequence[Member], results: Sequence[Result]) -> Summary:
    """Compare the results of the members, given in the same order."""
    measured = main_set(results)
    start = start_value(results, measured)
    rows = [_row(member, result, measured, start) for member, result in zip(members, results, strict=True)]
    finished = [row.best[0] for row in rows if row.best and row.result.status == DONE]
    lowest = min(finished, default=None)
    judged = tuple(replace(row, verdict=_verdict(row, lowest, rises=measured is not None)) for row in rows)
    return Summary(judged, measured, start)


def _row(member: Member, result: Result, measured: str | None, start: float | None) -> Row:
    curve = judged_curve(result, measured)
    best = curve.best
    change = best[0] / start - 1 if best and start else None
    return Row(member, result, curve, best, curve.last, change, "")


def _verdict(row: Row, lowest: float | None, *, rises: bool) -> str:
    """What to say of a run; `rises`: whether a loss that rises means something."""
    result = row.result
    if result.status == UNUSABLE:
        return f"not run: {result.reason}"
    if result.status == DIVERGED:
        return "diverged: its weights or gradients are no longer finite; try a lower lr"
    if result.status != DONE:
        return result.status + (f": {result.reason}" if result.reason else "")
    if row.best is None or row.final is None:
        return "done; no loss was logged"
    words = ["lowest"] if row.best[0] == lowest else []
    if row.change is not None:
        words.append(_against_start(row.change, row.final / row.best[0] * (1 + row.change) - 1))
    if rises and row.final > row.best[0] * (1 + CLEAR):
        words.append(f"rises after step {row.best[1]}")
    return "; ".join(words) or "done"


def _against_start(best: float, final: float) -> str:
    if final > CLEAR:
        return "ends worse than the start"
    if best < -CLEAR:
        return f"{-best:.1%} better than the start"
    return "no better than the start"


# Cells


def number(value: float | None, digits: int = 4) -> str:
    """A loss, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """``4.2 ms``, ``310 ms``, ``4.2 s``, ``12 min``, ``2.5 h``."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def megabytes(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g} MB" if value < 1000 else f"{value / 1000:.3g} GB"


HEADINGS = ("run", "lr", "best", "at step", "final", "per step", "training", "state", "lr at end", "verdict")


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells, under `HEADINGS`."""
    result = row.result
    return (
        row.member.label,
        short(row.member.main.options.lr),
        number(row.best[0] if row.best else None),
        str(row.best[1]) if row.best else MISSING,
        number(row.final),
        duration(result.step_seconds),
        duration(result.train_seconds),
        megabytes(result.state_mb),
        MISSING if row.lr_at_end is None else short(float(f"{row.lr_at_end:.2g}")),
        row.verdict,
    )


def table_lines(summary: Summary) -> list[str]:
    """The table for a terminal, from the lowest loss to the highest."""
    lines = aligned([HEADINGS, *map(cells, summary.ranked)], words=True)
    what = f"best and final: {summary.measure}"
    if summary.start is not None:
        what += f"; before training: {number(summary.start)}"
    elif summary.measured is None:
        what += ", smoothed, since nothing is validated: it is noisy, and falls where pictures are memorized"
    return [*lines, what]


def aligned(rows: Sequence[Sequence[str]], *, words: bool = False) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, but for a last one of words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join([*texts[:-1], row[-1]] if words else texts).rstrip())
    return lines


def as_json(summary: Summary) -> dict[str, Any]:
    """The outcome as JSON values."""
    return {
        "measure": summary.measure,
        "start": summary.start,
        "runs": [_row_as_json(row) for row in summary.rows],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    result, member = row.result, row.member
    return {
        "label": member.label,
        "optimizer": member.name,
        "status": result.status,
        "reason": result.reason or None,
        "lr": member.main.options.lr,
        "best": row.best[0] if row.best else None,
        "best_step": row.best[1] if row.best else None,
        "final": row.final,
        "change": row.change,
        "verdict": row.verdict,
        "step_seconds": result.step_seconds,
        "train_seconds": result.train_seconds,
        "process_seconds": result.seconds,
        "optimizer_state_mb": result.state_mb,
        "memory_gb": result.memory_gb,
        "effective_lr": row.lr_at_end,
        "curve": {"steps": row.curve.steps, "seconds": row.curve.seconds, "values": row.curve.values},
        "options": {
            name: {key: {"value": _strict(value), "source": c.sources[key]} for key, value in vars(c.options).items()}
            for name, c in member.run.components.items()
        },
    }


def _strict(value: Any) -> Any:
    """A value as strict JSON can hold it."""
    from ed_train.commands.check import strict

    return strict(value)
