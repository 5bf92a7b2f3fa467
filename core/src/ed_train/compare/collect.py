"""What a member's run has written, as numbers: metrics, samples, versions."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ed_train.compare.folder import Place
from ed_train.config.validation import TRAIN, VAL

VALIDATION = "validation/loss/"
CLEAR = 0.01
"""A change of the loss by less than this share is none."""


@dataclass(frozen=True)
class Curve:
    """A metric: optimizer steps, seconds of training until then, values; only finite ones."""

    steps: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None

    @property
    def best(self) -> tuple[float, int] | None:
        """The lowest value and its step."""
        return min(zip(self.values, self.steps, strict=True), default=None)

    def smoothed(self) -> Curve:
        """A running average over a tenth of the curve, or five values; its first values are averages of few."""
        share = 2 / (max(len(self.values) / 10, 5) + 1)
        average = weight = 0.0
        values = []
        for value in self.values:
            average, weight = average + share * (value - average), weight + share * (1 - weight)
            values.append(average / weight)
        return Curve(self.steps, self.seconds, tuple(values))


@dataclass(frozen=True)
class Result:
    """What is known about a member's run; anything may be missing.

    Attributes:
        label: of the member.
        status: as in its state.
        validation: the curves of all sets, by name.
        loss: of training.
        effective_lr: by component.
        step_seconds: median seconds of an optimizer step, without samples, checkpoints and the first steps.
        train_seconds: of all steps together.
        state_mb: of all optimizers together, in MB.
        memory_gb: peak memory of the device, or of the process where it trains on a CPU.
        samples: pictures of the end, in the order of the prompts.
        before: pictures of the start.
        record: the run.json.
    """

    label: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    validation: Mapping[str, Curve] = field(default_factory=dict)
    loss: Curve = Curve()
    effective_lr: Mapping[str, Curve] = field(default_factory=dict)
    step_seconds: float | None = None
    train_seconds: float | None = None
    state_mb: float | None = None
    memory_gb: float | None = None
    samples: tuple[Path, ...] = ()
    before: tuple[Path, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


def collect(place: Place) -> Result:
    """Read what a member's run has written so far."""
    state, folder = place.state, place.run_folder
    known: dict[str, Any] = {"label": place.member.label, "status": state.status, "reason": state.reason}
    known["seconds"] = state.seconds
    if folder is None:
        return Result(**known)
    scalars = _scalars(folder)
    clock = _Clock(scalars.get("step_seconds", []))
    curves = {name: clock.curve(points) for name, points in scalars.items()}
    last = {name: points[-1][1] for name, points in scalars.items()}
    sizes = [size for name, size in last.items() if name.startswith("optimizer_state_mb/")]
    return Result(
        **known,
        validation=_below(VALIDATION, curves),
        loss=curves.get("loss", Curve()),
        effective_lr=_below("effective_lr/", curves),
        step_seconds=clock.per_step,
        train_seconds=clock.total,
        state_mb=sum(sizes) if sizes else None,
        memory_gb=last.get("memory_gb"),
        samples=_pictures(folder, "after"),
        before=_pictures(folder, "before"),
        record=_record(folder / "run.json"),
    )


def main_set(results: Iterable[Result]) -> str | None:
    """The name of the validation set to judge by; None where no run has any."""
    names = dict.fromkeys(name for result in results for name in result.validation)
    return min(names, key=lambda name: (name != VAL, name == TRAIN), default=None)


def judged_curve(result: Result, name: str | None) -> Curve:
    """The curve that a run is judged by: the validation loss, or the smoothed loss of training where there is none."""
    return result.loss.smoothed() if name is None else result.validation.get(name, Curve())


def start_value(results: Sequence[Result], name: str | None) -> float | None:
    """The validation loss before the first step, which is that of all."""
    curves = [result.validation[name] for result in results if name and name in result.validation]
    return next((curve.values[0] for curve in curves if curve and curve.steps[0] == 0), None)


class _Clock:
    """Seconds of training by step, from the seconds that a step took between two log points."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self._steps, self._seconds = [0], [0.0]
        for step, per_step in points:
            self._seconds.append(self._seconds[-1] + max(0, step - self._steps[-1]) * per_step)
            self._steps.append(step)
        later = [per_step for _, per_step in points[1:]] or [per_step for _, per_step in points]
        self.per_step = median(later) if later else None
        self.total = self._seconds[-1] if points else None

    def curve(self, points: Iterable[tuple[int, float]]) -> Curve:
        kept = [(step, self._at(step), value) for step, value in points if math.isfinite(value)]
        return Curve(*zip(*kept, strict=True)) if kept else Curve()

    def _at(self, step: int) -> float:
        index = bisect_left(self._steps, step)
        if index == len(self._steps):
            return self._seconds[-1]
        if self._steps[index] == step or index == 0:
            return self._seconds[index]
        (first, second), (begin, end) = self._steps[index - 1 : index + 1], self._seconds[index - 1 : index + 1]
        return begin + (end - begin) * (step - first) / (second - first)


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar by name: steps and values. What a resumed run took again counts once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1}).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        by_step = {event.step: event.value for event in events.Scalars(name)}
        found[name] = sorted(by_step.items())
    return found


def _below(prefix: str, curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix) and curve}


def _pictures(folder: Path, moment: str) -> tuple[Path, ...]:
    """The sample pictures of a moment; those of the moving average where only it is drawn."""
    for prefix in (moment, f"{moment}-ema"):
        if found := sorted((folder / "samples").glob(f"{prefix}-[0-9][0-9]-*")):
            return tuple(found)
    return ()


def _record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
