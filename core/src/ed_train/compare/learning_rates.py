"""Which learning rate each optimizer of a comparison gets, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ed_train.config.describe import default_of, show
from ed_train.config.run import ComponentConfig
from ed_train.errors import Problem
from ed_train.registry import RegisteredOptimizer


@dataclass(frozen=True)
class LearningRates:
    """A grid: learning rates, or multiples of each optimizer's own.

    Attributes:
        values: empty for each optimizer's own alone.
        relative: whether they are multiples.
    """

    values: tuple[float, ...] = ()
    relative: bool = False


@dataclass(frozen=True)
class ChosenLr:
    """A learning rate and where it came from; `shown`: whether the run's label names it."""

    value: float
    source: str
    shown: bool = False


def parse_grid(text: str | None) -> tuple[LearningRates, list[Problem]]:
    """``1e-5,1e-4`` or ``0.3x,1x,3x``."""
    parts = [part.strip().lower() for part in (text or "").split(",") if part.strip()]
    relative = [part.endswith("x") for part in parts]
    numbers = [positive_number(part.removesuffix("x")) for part in parts]
    if text is not None and (not parts or len(set(relative)) > 1 or None in numbers or len(set(numbers)) < len(parts)):
        expected = "different numbers > 0, all plain (1e-5,1e-4) or all multiples (0.3x,1x,3x)"
        return LearningRates(), [Problem("--lr-grid", "", f"got {show(text)}; expected {expected}")]
    return LearningRates(tuple(n for n in numbers if n), any(relative)), []


def positive_number(text: str) -> float | None:
    """A finite number above 0, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def own_lr(optimizer: RegisteredOptimizer) -> float | None:
    """What its plugin recommends, else the default; None for a class that has none."""
    spec = optimizer.spec
    lr = spec.recommended.get("lr", default_of(spec.config_type, "lr"))
    return None if lr is None else float(lr)


def derived_lr(optimizer: RegisteredOptimizer, reference: ComponentConfig) -> ChosenLr:
    """The learning rate of an optimizer that the configuration does not have.

    Learning rates of optimizers relate as those that their plugins recommend do: where the configured one has another
    than the recommended, which suits another task or another length, so has this one, by the same factor.

    Args:
        optimizer: another one than the configured.
        reference: the component as it is configured.
    """
    spec, own = optimizer.spec, own_lr(optimizer)
    advised = f"{'recommended' if 'lr' in spec.recommended else 'default'} of {optimizer.origin}"
    configured, source = float(reference.options.lr), reference.sources["lr"]
    some_free = spec.learning_rate_free or reference.optimizer.spec.learning_rate_free
    if some_free or is_default(source):
        return ChosenLr(own or 0.0, advised)
    theirs = own_lr(reference.optimizer)
    if own is None or not theirs or not (optimizer.verified and reference.optimizer.verified):
        return ChosenLr(configured, f"that of {reference.optimizer.spec.name} ({source})")
    factor = own / theirs
    if factor == 1:
        return ChosenLr(configured, f"that of {reference.optimizer.spec.name} ({source})")
    why = f"{rounded(factor):g} x that of {reference.optimizer.spec.name} ({source}), as their recommended ones relate"
    return ChosenLr(rounded(configured * factor), why)


def is_default(source: str) -> bool:
    """Whether a value's source says that nobody has set it."""
    return source.startswith("default")


def short(value: float) -> str:
    """``3e-5``, ``0.1``, ``1``."""
    if value == 0 or 0.01 <= abs(value) < 1e4:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def rounded(value: float) -> float:
    """Without the noise of binary fractions."""
    return float(f"{value:.6g}")


def grid_of(grid: LearningRates, optimizer: RegisteredOptimizer, own: ChosenLr, pinned: bool) -> list[ChosenLr]:
    """The learning rates to try with an optimizer.

    Args:
        grid: as given.
        optimizer: a learning-rate-free one takes multiples only.
        own: its learning rate without the grid.
        pinned: whether the user gave `own` with the name; it then takes multiples only, too.
    """
    if grid.relative:
        return [ChosenLr(rounded(own.value * x), f"--lr-grid: {x:g} x {short(own.value)}", True) for x in grid.values]
    if not grid.values or pinned or optimizer.spec.learning_rate_free:
        return [own]
    return [ChosenLr(lr, "--lr-grid", True) for lr in grid.values]
