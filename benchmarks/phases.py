"""Where the time of the trainer's steps goes, so that overhead has a name.

The trainer runs in this process, and its parts are wrapped in clocks. On a CPU the work is done when a call returns, so
that the clocks add up; what no clock covers is the rest.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any

from rows import Row, make_assets, trainer_flags

PHASES = (
    "data", "noise", "text encoder", "UNet forward", "loss", "backward", "norms and clipping",
    "optimizer", "schedule", "logging", "other",
)  # fmt: skip
STEPS, WARM_UP = 20, 2
PRECISIONS = {"fp32": "float32", "default": "default"}


class Clock:
    """Seconds of each phase of a step; a phase within another one counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within: list[float] = []

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time counted."""

        @wraps(function)  # with its attributes: torch looks for one at an optimizer's step
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(phase):
                return function(*args, **kwargs)

        return measured

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time of a block."""
        self._within.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            own = spent - self._within.pop()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + own
            if self._within:
                self._within[-1] += spent


def profile_rows(rows: list[Row], folder: Path) -> str:
    """A Markdown table: milliseconds of each phase of a step, for rows and precisions."""
    columns = {f"{row.key}, {name}": profile(row, folder, key) for row in rows for key, name in PRECISIONS.items()}
    lines = [f"Milliseconds of a step, medians of {STEPS} steps.", ""]
    lines += [f"| phase | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for phase in (*PHASES, "step"):
        cells = [f"{1000 * column.get(phase, 0.0):.1f}" for column in columns.values()]
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def profile(row: Row, folder: Path, precision: str) -> dict[str, float]:
    """Median seconds of each phase."""
    from ed_train.config.load import load_config
    from ed_train.registry import load_registry
    from ed_train.train.setup import start

    clock = Clock()
    arguments = trainer_flags(row, make_assets(folder, row), folder, precision, WARM_UP + STEPS)
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    with redirect_stdout(sys.stderr):
        session, _ = start(load_config(flags, load_registry()))
    with _clocks(session, clock):
        steps = list(_steps(session, clock))[WARM_UP:]
    session.close()
    return {phase: statistics.median(step.get(phase, 0.0) for step in steps) for phase in (*PHASES, "step")}


def _steps(session: Any, clock: Clock) -> Iterator[dict[str, float]]:
    """Train; the seconds of each phase of each step."""
    from ed_train.train.step import train_step
    from ed_train.train.train import after_step

    while not session.done:
        windows = session.windows()
        while not session.done:
            clock.seconds = {}
            started = time.perf_counter()
            with clock.measure("other"):
                with clock.measure("data"):
                    window = next(windows, None)
                if window is None:
                    break
                after_step(session, train_step(session, window), len(window))
            yield {**clock.seconds, "step": time.perf_counter() - started}
        windows.close()


@contextmanager
def _clocks(session: Any, clock: Clock) -> Iterator[None]:
    """Clocks around the parts of a step."""
    import torch
    from ed_train.train import step

    session.text.embeddings = clock.timed("text encoder", session.text.embeddings)
    session.unet = clock.timed("UNet forward", session.unet)
    session.diffusion.add_noise = clock.timed("noise", session.diffusion.add_noise)
    session.diffusion.loss = clock.timed("loss", session.diffusion.loss)
    session.metrics.after_step = clock.timed("logging", session.metrics.after_step)
    for component in session.components:
        component.optimizer.step = clock.timed("optimizer", component.optimizer.step)
        component.lr_scheduler.step = clock.timed("schedule", component.lr_scheduler.step)
    with (
        _replaced(torch.autograd, "backward", clock.timed("backward", torch.autograd.backward)),
        _replaced(step, "_norms", clock.timed("norms and clipping", step._norms)),
        _replaced(step, "_not_finite", clock.timed("norms and clipping", step._not_finite)),
        _replaced(step, "_clip", clock.timed("norms and clipping", step._clip)),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
