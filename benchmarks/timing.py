"""What the floor and the trainer are timed with: the moments at which an optimizer has stepped."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepTimes:
    """Records when the first optimizer that steps has done so; the same hook in any training program."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.moments: list[float] = []
        self._first: Any = None
        register_optimizer_step_post_hook(self._record)

    def _record(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._first = self._first or optimizer
        if optimizer is self._first:
            self.moments.append(time.perf_counter())

    def result(self) -> dict[str, Any]:
        """Seconds per step without the first, their mean, and seconds from the start to the first step."""
        steps = [after - before for before, after in zip(self.moments, self.moments[1:], strict=False)]
        return {"mean": sum(steps) / len(steps), "steps": steps, "first": self.moments[0] - self.started}
