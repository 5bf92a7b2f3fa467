"""What the floor and the trainer are timed with: when an optimizer has stepped, and whose turn it is."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

TURN, WARM_UP, STARTED = "BENCH_TURN", "BENCH_WARM_UP", "BENCH_STARTED"
"""Environment variables: steps in a turn (0: no turns), steps before the first turn, when the process was started."""


class StepTimes:
    """Records when the first optimizer that steps has done so; the same hook in any training program.

    After the steps of its turn the process stops itself, with all of its threads, so that nothing of it runs in the
    turns of others. Whoever started it lets it go on. The first turn is for imports, models and the first steps.
    """

    def __init__(self) -> None:
        self.turn, self.warm_up = int(os.environ.get(TURN, "0")), int(os.environ.get(WARM_UP, "1"))
        self.steps = 0
        self.turns: list[float] = []
        self.first = 0.0
        self._since = 0.0
        self._first: Any = None
        register_optimizer_step_post_hook(self._record)

    def _record(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._first = self._first or optimizer
        if optimizer is not self._first:
            return
        self.steps += 1
        if self.steps == 1:
            self.first = time.time() - float(os.environ.get(STARTED, time.time()))
        taken = self.steps - self.warm_up
        if taken < 0 or not self.turn or taken % self.turn:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the steps are begun; the turn is over when they are done
        now = time.perf_counter()
        if taken:
            self.turns.append((now - self._since) / self.turn)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._since = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Seconds per step of each turn, seconds from the start to the first step, peak memory of the GPU in GB."""
        gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        return {"turns": self.turns, "first": self.first, "gpu": gpu}
