"""The components that train: freeze, collect the parameters, build the optimizer, build the schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ed_train.api import build_optimizer
from ed_train.config.run import TEXT_ENCODER, UNET, ComponentConfig, FreezeConfig
from ed_train.errors import ConfigError, PluginError, Problem
from ed_train.models.text_parts import body, reached_layers

if TYPE_CHECKING:
    from ed_train.train.partial_steps import PartialSteps


@dataclass
class TrainedComponent:
    """A module with an optimizer of its own.

    Attributes:
        name: ``unet`` or ``text_encoder``.
        module: the module itself, never a wrapper around it.
        parameters: what the optimizer holds; a list, since clipping reads it again in every step.
        parameter_names: their names in the module, in the same order.
        partial_steps: step the optimizer over some of the parameters at a time; None where it steps over all at once.
    """

    name: str
    config: ComponentConfig
    module: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    parameter_names: list[str]
    optimizer: torch.optim.Optimizer
    lr_scheduler: LRScheduler
    partial_steps: PartialSteps | None = None

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def effective_lr(self) -> float:
        """The step size that is really used: d times lr for a learning-rate-free optimizer."""
        estimate = self.config.optimizer.spec.effective_lr
        return float(estimate(self.optimizer.param_groups[0])) if estimate else self.lr

    def set_schedule(self, steps: int) -> None:
        """Move the schedule to where it is after so many steps, with the learning rate that is configured now."""
        schedule: Any = self.lr_scheduler  # a LambdaLR, like all of diffusers': a function of the step alone
        schedule.last_epoch, schedule._step_count = steps, steps + 1
        for group, base, factor in zip(
            self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["initial_lr"], group["lr"] = base, base * factor(steps)
        schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def set_training(self, training: bool) -> None:
        """Switch the module, and a schedule-free optimizer with it."""
        self.module.train(training)
        if self.config.optimizer.spec.schedule_free:
            switch: Callable[[], None] = getattr(self.optimizer, "train" if training else "eval")
            switch()

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """What trains, each with its name."""
        return zip(self.parameter_names, self.parameters, strict=True)

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Give parameters these values, by name."""
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])


def freeze(name: str, module: torch.nn.Module, policies: Iterable[FreezeConfig]) -> list[str]:
    """Apply the policies of a component.

    Returns:
        The names of the parameters that are frozen now.

    Raises:
        ConfigError: a policy does not fit the module, or nothing is left to train.
        PluginError: a policy fails in another way.
    """
    applied = [p for p in policies if p.policy.policy.component == name]
    for freezing in applied:
        section = freezing.policy.policy.section
        try:
            list(freezing.policy.policy.apply(module, freezing.options))  # which may be a generator
        except ValueError as error:
            raise ConfigError([Problem(freezing.where, section, str(error))]) from error
        except Exception as error:
            raise PluginError(f"{freezing.policy.distribution}: {section} could not be applied: {error}") from error
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    if all(not p.requires_grad for p in module.parameters()):
        where = applied[-1].where if applied else ""
        section = applied[-1].policy.policy.section if applied else name
        switch = "disable_textenc_training" if name == TEXT_ENCODER else "disable_unet_training"
        message = f"freezes every parameter of the {name}; leave something to train, or set {switch}"
        raise ConfigError([Problem(where, section, message)])
    return frozen


def freeze_unused(text_encoder: torch.nn.Module, clip_skip: int) -> list[str]:
    """Freeze what the loss never reaches: layers behind clip_skip, and the projection that only a pooled output uses.

    Data-parallel training fails over parameters without gradients, and an optimizer would hold state for nothing.
    """
    unused = [module for module in (getattr(text_encoder, "text_projection", None),) if module is not None]
    layers: Any = body(text_encoder).encoder.layers
    unused += list(layers[reached_layers(len(layers), clip_skip) :])
    ids = {id(p) for module in unused for p in module.parameters()}
    names = [n for n, p in text_encoder.named_parameters() if id(p) in ids]
    for module in unused:
        module.requires_grad_(False)
    return names


def build_component(config: ComponentConfig, module: torch.nn.Module, total_steps: int) -> TrainedComponent:
    """Build optimizer and schedule over the module's parameters that require a gradient.

    Args:
        config: the component's optimizer, options and schedule.
        module: the component, frozen as it should be and on its device.
        total_steps: optimizer steps of the whole run.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    optimizer = build_optimizer(config.optimizer, parameters, config.options)
    scheduler = build_scheduler(config, optimizer, total_steps)
    return TrainedComponent(config.name, config, module, parameters, [n for n, _ in named], optimizer, scheduler)


def decay_and_warmup_steps(config: ComponentConfig, total_steps: int) -> tuple[int, int]:
    """The schedule's lengths in optimizer steps: by default 1.5 times the run's, and 2 % of that."""
    given = config.lr_decay_steps
    decay = given if given is not None and given >= 1 else max(1, round(1.5 * total_steps))
    warmup = config.lr_warmup_steps
    return decay, round(0.02 * decay) if warmup is None else warmup


def build_scheduler(config: ComponentConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Build one of diffusers' schedules, over optimizer steps."""
    from diffusers.optimization import get_scheduler

    decay, warmup = decay_and_warmup_steps(config, total_steps)
    if config.lr_scheduler == "polynomial":
        # diffusers' refuses an lr that is not above its end, 1e-7, and divides by 0 where the warmup is all there is.
        lr = optimizer.param_groups[0]["lr"]
        end = min(1e-7 / lr, 0.1) if lr else 0.1
        scheduler = LambdaLR(optimizer, partial(_polynomial, warmup=warmup, decay=decay, end=end))
    else:
        scheduler = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=decay)
    if not config.optimizer.spec.lr_may_be_zero:
        _keep_above_zero(scheduler)
    return scheduler


def _polynomial(step: int, *, warmup: int, decay: int, end: float) -> float:
    """A polynomial schedule of power 1, as diffusers has it: up to 1 in the warmup, then down to `end` for good."""
    if step < warmup:
        return step / warmup
    return end + (1 - end) * (decay - step) / (decay - warmup) if step < decay else end


def _keep_above_zero(scheduler: LambdaLR) -> None:
    """Keep a schedule above 0, for optimizers that fail there."""
    scheduler.lr_lambdas = [partial(_positive, factor) for factor in scheduler.lr_lambdas]
    groups = scheduler.optimizer.param_groups
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(0)


def _positive(factor: Callable[[int], float], step: int) -> float:
    """A schedule's factor; a warmup's first step uses the second one's, and a decay ends at a millionth."""
    return max(factor(step), factor(1) if step == 0 else 0.0, 1e-6)


_AFTER_DECAY = {
    "linear": "is 0",
    "cosine": "rises again",
    "cosine_with_restarts": "is 0",
    "polynomial": "stays as it is",
}
"""What the lr of each schedule that has a decay does afterwards."""


def schedule_notes(config: ComponentConfig, total_steps: int) -> list[str]:
    """Lines about schedule settings that do nothing, or not what they say."""
    decay, warmup = decay_and_warmup_steps(config, total_steps)
    scheduler, sources, notes = config.lr_scheduler, config.sources, []
    if scheduler == "constant" and config.lr_warmup_steps:
        notes.append(
            f"{sources['lr_warmup_steps']} has no effect with lr_scheduler constant; constant_with_warmup has a warmup"
        )
    elif scheduler != "constant" and warmup > total_steps:
        notes.append(f"{config.name}: lr_warmup_steps {warmup} is more than this run's {total_steps} optimizer steps")
    given = config.lr_decay_steps is not None and config.lr_decay_steps >= 1
    if given and scheduler in _AFTER_DECAY and decay < total_steps:
        fewer = f"lr_decay_steps {decay} is less than this run's {total_steps} optimizer steps"
        notes.append(f"{config.name}: {fewer}: after them, the lr of {scheduler} {_AFTER_DECAY[scheduler]}")
    elif given and scheduler not in _AFTER_DECAY and (scheduler == "constant" or config.lr_warmup_steps is not None):
        # otherwise the length of the warmup comes from it
        notes.append(f"{sources['lr_decay_steps']} has no effect with lr_scheduler {scheduler}, which has no decay")
    if scheduler != "constant" and not config.optimizer.spec.lr_may_be_zero:
        notes.append(f"{config.name}: {config.optimizer.spec.name} cannot step at lr 0: its schedule stays above it")
    return notes


def component_label(name: str) -> str:
    return {UNET: "UNet", TEXT_ENCODER: "text encoder"}[name]


def step_failed(component: TrainedComponent, error: Exception) -> PluginError:
    """What to raise where an optimizer's step has raised something."""
    optimizer = component.config.optimizer
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return PluginError(f"{optimizer.origin}: a step of {optimizer.spec.name} failed: {reason}")
