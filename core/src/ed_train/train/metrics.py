"""What a run shows while it trains: two progress bars, lines of text, TensorBoard scalars and pictures."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ed_train.config.run import TEXT_ENCODER
from ed_train.config.train_keys import TrainConfig
from ed_train.train.state import size_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ed_train.train.components import TrainedComponent
    from ed_train.train.events import EventLog
    from ed_train.train.step import StepResult


class Metrics:
    """Progress and metrics of one run. Only the main process shows and writes them.

    Values stay on the device between two log points, so that logging never makes the device wait.
    """

    def __init__(
        self, folder: Path | None, epochs: int, steps: int, train: TrainConfig, step: int = 0, epoch: int = 0
    ) -> None:
        """Open the bars and the files.

        Args:
            folder: the run's folder; None in every process but the main one.
            epochs: number of epochs, for the bar.
            steps: number of optimizer steps, for the bar.
            train: says how often to log, and whether to Weights & Biases as well.
            step: where the run goes on; what an earlier part of it logged beyond that does not count.
            epoch: likewise.
        """
        self.log_step = train.log_step
        self.events: EventLog | None = None
        self._losses: list[torch.Tensor] = []
        self._images = 0
        self._state_counted = False
        self._since = time.perf_counter()
        self._first: tuple[int, float] | None = None
        if folder is not None:
            from ed_train.train.events import EventLog

            if train.wandb:
                import wandb

                wandb.init(project=train.project_name, name=folder.name, dir=str(folder), sync_tensorboard=True)
            self.events = EventLog(folder, step, self._print)
        self.steps = steps
        terminal = sys.stdout.isatty()  # elsewhere a line at each log point takes the place of the bars
        self.plain = folder is not None and not terminal
        quiet = folder is None or not terminal
        self.epoch_bar = tqdm(
            total=epochs, desc="epochs", unit="epoch", initial=epoch, disable=quiet, position=0, file=sys.stdout
        )
        self.step_bar = tqdm(
            total=steps, desc="steps", unit="step", initial=step, disable=quiet, position=1, file=sys.stdout
        )

    def say(self, line: str) -> None:
        """Print a line above the bars, from the main process."""
        if self.events:
            self._print(line)

    @staticmethod
    def _print(line: str) -> None:
        """Print a line; where a reader such as tee or less has ended, that costs the lines, never the training."""
        try:
            print_line(line)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            with suppress(OSError):
                print("warning: nobody reads the output any more; training goes on", file=sys.stderr)

    def due(self, step: int) -> bool:
        """Whether values are logged after this step; only then may anything wait for the device."""
        return step % self.log_step == 0 or step == self.steps

    def after_step(
        self,
        step: int,
        result: StepResult,
        components: Sequence[TrainedComponent],
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Count a step; at a log point, read and show what has gathered.

        Args:
            step: optimizer steps so far.
            result: of this step.
            components: for their learning rates.
            reduce: averages a tensor over all processes.
        """
        self.step_bar.update()
        self._first = self._first or (step, time.perf_counter())
        self._losses.append(result.loss)
        self._images += result.images
        if not self.due(step):
            return
        loss = float(reduce(torch.stack(self._losses).mean()))
        now = time.perf_counter()
        seconds = now - self._since
        rate, per_step = self._images / seconds, seconds / len(self._losses)
        self._losses, self._images, self._since = [], 0, now
        if not self.events:
            return
        memory = _memory_gb(result.loss.device)
        scalars = {"loss": loss, "images_per_second": rate, "step_seconds": per_step, "memory_gb": memory}
        for c in components:
            scalars |= {f"lr/{c.name}": c.lr, f"effective_lr/{c.name}": c.effective_lr}
            scalars[f"grad_norm/{c.name}"] = float(result.grad_norms[c.name])
        if not self._state_counted and any(c.optimizer.state for c in components):  # it does not change
            scalars |= {f"optimizer_state_mb/{c.name}": size_of(c.optimizer.state_dict()) / 1e6 for c in components}
            self._state_counted = True
        self.events.write(scalars, step)
        images = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
        shown = {"loss": f"{loss:.4f}", **self._shown_rates(components), "img/s": images}
        self.step_bar.set_postfix(shown)
        if self.plain:
            words = [*(f"{key} {value}" for key, value in shown.items()), *self._time_left(step)]
            self._print(f"step {step}/{self.steps}: {', '.join(words)}")

    def _time_left(self, step: int) -> Iterator[str]:
        """At the pace since the first step, everything between steps included."""
        first, began = self._first or (step, 0.0)
        if first < step < self.steps:
            pace = (time.perf_counter() - began) / (step - first)
            yield f"{tqdm.format_interval(pace * (self.steps - step))} left"

    @staticmethod
    def _shown_rates(components: Sequence[TrainedComponent]) -> dict[str, str]:
        return {("te" if c.name == TEXT_ENCODER else c.name) + " lr": f"{c.effective_lr:.2e}" for c in components}

    @contextmanager
    def paused(self) -> Generator[None]:
        """A block of something that is not training: its time is left out of the throughput."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - since

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add values by name to TensorBoard."""
        if self.events:
            self.events.write(values, step)

    def picture(self, name: str, image: Image, step: int) -> None:
        """Add a picture to TensorBoard."""
        if self.events:
            self.events.picture(name, np.asarray(image), step)

    def flush(self) -> None:
        """See to it that what has been logged so far is not lost by a kill."""
        if self.events:
            self.events.flush()

    def close(self) -> None:
        self.step_bar.close()
        self.epoch_bar.close()
        if self.events:
            self.events.close()


def print_line(line: str) -> None:
    """Print above the bars. A full disk behind a redirected output costs the line, never the training.

    Raises:
        BrokenPipeError: whoever read the output is gone.
    """
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


def _memory_gb(device: torch.device) -> float:
    """Peak memory of the device, or of the process where it trains on the CPU, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
