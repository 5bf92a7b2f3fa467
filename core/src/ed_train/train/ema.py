"""A moving average of the weights that train: sampled and saved beside them, without any part in the training."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ed_train.config.ema import EMA_RECORD, uses_ema
from ed_train.config.resume import EMA_FILE
from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.errors import CheckpointError, ConfigError, Problem
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference
from ed_train.models.save import ModelWeights
from ed_train.models.tensors import listed
from ed_train.train.components import TrainedComponent


@dataclass(frozen=True)
class EmaPlan:
    """How a run averages its weights.

    Attributes:
        decay: the share of the average that stays at each update.
        interval: optimizer steps between updates.
        begun: the step at which the average began: 0, or where a run went on without one.
        goes_on: whether the checkpoint that the run goes on from has an average.
    """

    decay: float
    interval: int
    begun: int = 0
    goes_on: bool = False


def plan_ema(run: RunConfig, total_steps: int, step: int) -> tuple[EmaPlan | None, list[str]]:
    """How a run averages its weights.

    Args:
        run: its configuration.
        total_steps: optimizer steps of the whole run.
        step: where it begins or goes on.

    Returns:
        The plan, or None where EMA is off, and lines for the user.
    """
    train, record = run.train, run.resume.manifest.get(EMA_RECORD) if run.resume else None
    if not uses_ema(train):
        return None, ["EMA is off now: the average that the checkpoint has ends here"] if record else []
    begun, interval = record["begun"] if record else step, train.ema_update_interval
    updates = total_steps // interval - begun // interval
    if train.ema_strength_target is not None:
        decay = train.ema_strength_target ** (1 / max(1, updates))
    else:
        decay = train.ema_decay_rate or 0.0
    every = "step" if interval == 1 else f"{interval} steps"
    if record:
        beginning = "goes on with the checkpoint's average"
    elif run.ema_model:
        beginning = f"begins with {run.ema_model.location}"
    else:
        beginning = "begins with the checkpoint's weights" if run.resume else "begins with the model's weights"
    notes = [f"EMA: {decay:.8g} of the average stays at each update, one every {every}; it {beginning}"]
    if not updates and total_steps > step:
        left = f"the next would be at step {(begun // interval + 1) * interval}, and the run ends at step {total_steps}"
        notes.append(f"EMA: the average is never updated: {left}")
    notes += [
        f"EMA: {component.optimizer.spec.name} averages the weights of the {component.name} by itself"
        for component in run.components.values()
        if component.optimizer.spec.schedule_free
    ]
    return EmaPlan(decay, interval, begun, bool(record)), notes


@dataclass
class Ema:
    """The average of every parameter that trains, in float32.

    Attributes:
        names: of the parameters, with that of their component in front.
        parameters: the parameters themselves.
        averages: of each parameter, in the same order.
    """

    plan: EmaPlan
    names: list[str]
    parameters: list[Tensor]
    averages: list[Tensor]
    _alike: bool = field(init=False)
    _waiting: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pairs = zip(self.averages, self.parameters, strict=True)
        self._alike = all((a.device, a.dtype) == (p.device, p.dtype) for a, p in pairs)

    def after_step(self, taken: int) -> None:
        """Update the average if that is due after so many optimizer steps, skipped ones not counted."""
        if taken % self.plan.interval == 0:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """``average = decay * average + (1 - decay) * weight``, for all of them at once."""
        share = 1.0 - self.plan.decay
        if self._alike:
            torch._foreach_lerp_(self.averages, self.parameters, share)
            return
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.to(average), share)  # one by one: a copy of all would take as much again

    @contextmanager
    def in_use(self) -> Generator[None]:
        """The averages in place of the weights while the block runs; the weights are back however it ends.

        In place of weights in bfloat16 they are rounded to the nearest, and as they were afterwards.

        No signal may interrupt the exchange itself: `StopSignals` must defer them where the block begins and ends.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for index, (average, parameter) in enumerate(zip(self.averages, self.parameters, strict=True)):
            if average.dtype != parameter.dtype:
                # Types cannot be exchanged: see `widened`.
                weight = self._waiting.pop(index, None)
                if weight is None:
                    self._waiting[index] = parameter.detach().to(average.device, copy=True)
                parameter.copy_(average if weight is None else weight)
            elif average.device != parameter.device:
                held = average.to(parameter.device, copy=True)
                average.copy_(parameter)
                parameter.copy_(held)
            else:
                parameter.data, average.data = average.data, parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, not copied."""
        return {name: average.contiguous() for name, average in zip(self.names, self.averages, strict=True)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> list[str]:
        """Take averages over; returns the names of those that `state` does not have in this shape."""
        absent = []
        for name, average in zip(self.names, self.averages, strict=True):
            if name in state and state[name].shape == average.shape:
                average.copy_(state[name])
            else:
                absent.append(name)
        return absent


def begin_ema(
    run: RunConfig, components: Sequence[TrainedComponent], total_steps: int, step: int
) -> tuple[Ema | None, list[str]]:
    """The average as it is before the next step; None where EMA is off.

    Args:
        run: its configuration.
        components: as they begin or go on.
        total_steps: optimizer steps of the whole run.
        step: where it begins or goes on.

    Returns:
        It, and lines for the user.

    Raises:
        CheckpointError: the average of the checkpoint cannot be read.
        ConfigError: ema_resume_model cannot be read, or is another kind of model.
    """
    plan, notes = plan_ema(run, total_steps, step)
    if plan is None:
        return None, notes
    named: dict[str, Tensor] = {f"{c.name}.{name}": p for c in components for name, p in c.named_parameters()}
    device = run.train.ema_device
    averages = [p.detach().to(device, torch.float32, copy=True) for p in named.values()]
    ema = Ema(plan, list(named), list(named.values()), averages)
    if plan.goes_on and run.resume:
        absent = ema.load(_read(run.resume.checkpoint / EMA_FILE))
        if absent:
            notes.append(f"EMA: {len(absent)} parameters have no average yet and begin one ({listed(absent)})")
    elif run.ema_model and (absent := ema.load(_weights(run.ema_model))):
        message = f"{run.ema_model.location} is another kind of model: it has no {listed(absent)} of this shape"
        raise ConfigError([Problem("", "ema_resume_model", message)])
    return ema, notes


def averaged(weights: Mapping[str, Any], averages: Mapping[str, Tensor]) -> dict[str, ModelWeights]:
    """The weights of components with the averages of `Ema.state_dict` in place of those that train.

    What of a pipeline is no `ModelWeights` does not train, and is left out.
    """
    return {
        name: replace(component, state={n: averages.get(f"{name}.{n}", t) for n, t in component.state.items()})
        for name, component in weights.items()
        if isinstance(component, ModelWeights)
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _weights(reference: ModelReference) -> dict[str, Tensor]:
    """UNet and text encoder of a model, named as `Ema` names parameters."""
    try:
        model = SdModel(reference)
        modules = {UNET: model.load_unet(), TEXT_ENCODER: model.load_text_encoder()}
    except ConfigError as error:
        raise ConfigError(replace(problem, key="ema_resume_model") for problem in error.problems) from error
    return {f"{name}.{n}": p for name, module in modules.items() for n, p in module.named_parameters()}
