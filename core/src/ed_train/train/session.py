"""Everything that a running training needs, and what all of its parts do together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.train.noise import Diffusion
from ed_train.train.processes import WAIT
from ed_train.train.signals import Interrupted, StopSignals
from ed_train.train.skipped import settle
from ed_train.train.state import training_state

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ed_train.data.loader import Batch, BatchLoader
    from ed_train.models.load import SdModel
    from ed_train.train.components import TrainedComponent
    from ed_train.train.ema import Ema
    from ed_train.train.metrics import Metrics
    from ed_train.train.output import Output
    from ed_train.train.step import StepResult
    from ed_train.train.text import TextConditioning
    from ed_train.train.validation import Validator


@dataclass
class Session:
    """A run in progress.

    Attributes:
        run: its resolved configuration.
        accelerator: device, precision and processes.
        model: the source of the weights and of the parts that do not train.
        unet: called in the forward pass; wrapped for several processes if it trains.
        text: the text encoder, or what a cache has in its place.
        components: what trains, each with its optimizer.
        diffusion: noise and loss.
        loader: the batches.
        output: the run's folder: checkpoints and sample pictures; None in every process but the main one.
        metrics: progress bars and logged values.
        signals: tells whether somebody wants the run to stop.
        total_steps: optimizer steps of the whole run.
        batch_number: global batches so far; seeds each batch's noise.
        epoch: the current one, from 0.
        batches_done: global batches of it that have been trained.
        step: optimizer steps so far, skipped ones included.
        first_step: `step` when this process began, more than 0 where a run goes on.
        skipped: steps that were skipped because of gradients that are not finite.
        skipped_in_a_row: how many of them since the last good one.
        ema: the moving average of the weights; None where it is off, and in every process but the main one.
        validator: the losses of pictures that do not train; None where it is off.
        unread: whether optimizers step without anybody having read that the gradients are finite; see `steps_unread`.
        results: steps of which nobody has read yet whether they were skipped, with their numbers.
    """

    run: RunConfig
    accelerator: Accelerator
    model: SdModel
    unet: nn.Module
    text: TextConditioning
    components: list[TrainedComponent]
    diffusion: Diffusion
    loader: BatchLoader
    output: Output | None
    metrics: Metrics
    total_steps: int
    signals: StopSignals
    batch_number: int = 0
    epoch: int = 0
    batches_done: int = 0
    step: int = 0
    first_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    ema: Ema | None = None
    validator: Validator | None = None
    unread: bool = False
    results: list[tuple[int, StepResult]] = field(default_factory=list)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler; only fp16 has one."""
        scaler: torch.amp.GradScaler | None = self.accelerator.scaler
        return scaler

    def windows(self) -> Generator[list[Batch]]:
        """The batches of each optimizer step of the current epoch that is left; the last may be fewer than grad_accum.

        An epoch that is not cut short by max_steps is counted when its last window has been trained.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if self.run.train.write_schedule and self.output and not self.batches_done:
            self.output.write_schedule(self)
        with closing(self.loader.iterate(self.epoch, self.batches_done, rank, world)) as batches:
            while window := list(islice(batches, self.run.train.grad_accum)):
                yield window

    @property
    def place(self) -> str:
        """Where the run is, for names: epochs, one that has been begun included, and steps, as ``ep01-gs00003``."""
        return f"ep{self.epoch + bool(self.batches_done):02d}-gs{self.step:05d}"

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.total_steps

    def count(self, batches: int) -> bool:
        """Count a step over so many batches; returns whether it was its epoch's last."""
        self.step += 1
        self.batches_done += batches
        if self.batches_done < self.loader.epochs.batches(self.epoch):
            return False
        self.epoch, self.batches_done = self.epoch + 1, 0
        return True

    def agree(self, *wishes: bool) -> list[bool]:
        """What any process wishes, so that all do the same; nobody waits for a device."""
        if self.accelerator.num_processes == 1:
            return list(wishes)
        flags = torch.tensor(wishes, dtype=torch.uint8)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=self._group_of_cpus)
        return flags.bool().tolist()

    @cached_property
    def _group_of_cpus(self) -> torch.distributed.ProcessGroup:
        group: torch.distributed.ProcessGroup = torch.distributed.new_group(backend="gloo", timeout=WAIT)
        return group

    @property
    def trained_modules(self) -> list[nn.Module]:
        """The modules as the forward pass calls them, wrappers included, of the components that train."""
        by_name = {UNET: self.unet, TEXT_ENCODER: self.text.last}
        return [module for c in self.components if (module := by_name[c.name])]

    @property
    def text_encoder(self) -> nn.Module | None:
        """The whole text encoder, never a wrapper around it; None where embeddings from a cache take its place."""
        return self.text.module

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """The mean of a scalar that every process has one of."""
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    @contextmanager
    def evaluation(self) -> Generator[dict[str, dict[str, Tensor]]]:
        """Modules, and schedule-free optimizers, in evaluation mode: for samples and checkpoints. Not timed.

        Training goes on as if nothing had happened: switching a schedule-free optimizer there and back rounds its
        weights, so they are held, and put back.

        Yields:
            Those weights as they are in training, by component and name.
        """
        with self.metrics.paused():
            switching = [c for c in self.components if c.config.optimizer.spec.schedule_free]
            held = {c.name: {n: p.detach().to("cpu", copy=True) for n, p in c.named_parameters()} for c in switching}
            self.set_training(False)
            try:
                yield held
            finally:
                self.set_training(True)
                for component in switching:
                    component.set_weights(held[component.name])

    def set_training(self, training: bool) -> None:
        """Switch modules, and schedule-free optimizers with them, between training and evaluation."""
        for component in self.components:
            component.set_training(training)

    def sample(self, name: str) -> None:
        """Draw the sample pictures, as files ``NAME-...`` and in the metrics, unless samples are off.

        With a moving average, from it, as ``NAME-ema-...``; or from the weights that train, or from both.
        """
        train = self.run.train
        if not train.sample_steps:
            return
        with self.evaluation(), suppress(Interrupted):  # whoever calls looks at the signals next
            if not self.ema or train.ema_sample_nonema_model:
                self._draw(name, "samples")
            if self.ema and (train.ema_sample_ema_model or not train.ema_sample_nonema_model):
                with self.ema.in_use():
                    self._draw(f"{name}-ema", "samples-ema")

    def _draw(self, name: str, tag: str) -> None:
        if self.output:
            with self.signals.deferred(False):
                self.output.sample(self, name, tag)

    def save(self, *, last: bool = False) -> None:
        """Write a checkpoint, unless save_nothing is set; all processes must call it together.

        Args:
            last: nothing follows: return when it is written.
        """
        if self.run.train.save_nothing:
            return
        settle(self)
        self.metrics.flush()  # a run that goes on from here does not log these steps again
        with self.evaluation() as held:
            state = training_state(self, held)
            if self.output:
                self.output.save(self, state, last=last)

    def close(self) -> None:
        """End the bars and log files, and the other processes' part in this run."""
        if self.output:
            self.output.close()
        self.metrics.close()
        self.accelerator.end_training()
