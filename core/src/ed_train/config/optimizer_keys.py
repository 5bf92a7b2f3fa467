"""Keys of optimizer.json that belong to no optimizer: schedules, the text encoder's lr scale, the gradient scaler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from ed_train.config.describe import show
from ed_train.config.train_keys import Scheduler, Whole
from ed_train.specs import Help, NonNegative, option_names

STOCK_OPTIONS = ("lr", "betas", "epsilon", "weight_decay")
"""Options that stand in every stock optimizer.json, whether or not an optimizer that has them is installed."""

SCALE_KEYS = ("text_encoder_lr_scale", "text_encder_lr_scale")
"""The key and a misspelling of it that old documents have."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule's keys, as they stand among an optimizer's options."""

    lr_scheduler: Annotated[Scheduler, Help("how the learning rate changes over the run")] = "constant"
    lr_decay_steps: Annotated[
        int | None, Help("length of the schedule in optimizer steps; null or below 1: 1.5 times the run's")
    ] = None
    lr_warmup_steps: Annotated[
        Whole | None, Help("optimizer steps in which the learning rate rises; null: 2 % of lr_decay_steps")
    ] = None

    def __post_init__(self) -> None:
        decay = self.lr_decay_steps or 0
        if self.lr_warmup_steps and 0 < decay < self.lr_warmup_steps:
            raise ValueError(f"lr_warmup_steps {self.lr_warmup_steps} is more than lr_decay_steps {decay}; lower one")


@dataclass(frozen=True)
class ScaleAndTweaks:
    """Single values of optimizer.json."""

    text_encoder_lr_scale: Annotated[
        NonNegative, Help("the text encoder's learning rate is this times the UNet's, unless it has one of its own")
    ] = 1.0
    apply_grad_scaler_step_tweaks: Annotated[
        bool, Help("float16 only: let the gradient scaler grow more slowly as the run goes on")
    ] = True


SCHEDULE_KEYS = option_names(ScheduleConfig)


@dataclass(frozen=True)
class Given:
    """A value that a user set, and where."""

    value: Any
    where: str
    key: str

    @property
    def source(self) -> str:
        return f"{self.where} {self.key}".strip()

    def __str__(self) -> str:
        return f"{self.key}={show(self.value)} ({self.where})" if self.key else f"{self.where} {show(self.value)}"
