"""Axes: from values to pixels, and where the ticks are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ed_train.compare.learning_rates import short


@dataclass(frozen=True)
class Axis:
    """An axis of a plot.

    Attributes:
        low: value at its beginning.
        high: value at its end.
        log: whether it is logarithmic.
        label: with the unit.
    """

    low: float
    high: float
    log: bool = False
    label: str = ""

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at the beginning to 1 at the end."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        """Round values, at most about seven."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def axis_over(values: Sequence[float], *, label: str, log: bool = False, from_zero: bool = False) -> Axis:
    """An axis that shows all of these values, with a little room."""
    low, high = min(values), max(values)
    if log:
        room = max(math.log10(high / low) * 0.06, 0.05)
        return Axis(low / 10**room, high * 10**room, True, label)
    room = (high - low or abs(high) or 1.0) * 0.06
    return Axis(0.0 if from_zero else low - room, high + room, False, label)


def _linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    powers = range(first, last + 1, max(1, -(-decades // 6)))
    ticks = [tick for power in powers for f in factors if low <= (tick := float(f"{f}e{power}")) <= high]
    return ticks if len(ticks) > 1 else _linear_ticks(low, high)


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """The ticks of one axis in one manner: ``0.0``, ``0.5``; ``1,000``, ``1,500``; ``1e-5``, ``3e-5``."""
    sizes = [abs(tick) for tick in ticks if tick] or [1.0]
    if min(sizes) < 1e-3 or max(sizes) >= 1e6:
        return [short(tick) for tick in ticks]
    decimals = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return [f"{tick:,.{decimals}f}" for tick in ticks]
