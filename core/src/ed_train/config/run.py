"""A run with everything resolved: what the trainer sees instead of files, flags and plugins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ed_train.config.optimizer_keys import Given
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import ConfigError, Problem
from ed_train.models.prompts import SampleSettings
from ed_train.registry import RegisteredFreezePolicy, RegisteredOptimizer

if TYPE_CHECKING:
    from ed_train.config.reload import SettingsFile
    from ed_train.config.resume import ResumePoint
    from ed_train.config.validation import Validation
    from ed_train.models.reference import ModelReference

UNET = "unet"
TEXT_ENCODER = "text_encoder"


@dataclass(frozen=True)
class ComponentConfig:
    """How one component (``unet`` or ``text_encoder``) is optimized.

    Attributes:
        optimizer: the optimizer and the plugin that it comes from.
        options: an instance of the spec's config_type.
        lr_scheduler: a name that diffusers' get_scheduler knows.
        lr_decay_steps: optimizer steps, or None for 1.5 times the run's.
        lr_warmup_steps: optimizer steps, or None for 2 % of the decay steps.
        sources: where each option and schedule key came from, e.g. ``optimizer.json:4 base.lr``.
    """

    name: str
    optimizer: RegisteredOptimizer
    options: Any
    lr_scheduler: str
    lr_decay_steps: int | None
    lr_warmup_steps: int | None
    sources: Mapping[str, str]


@dataclass(frozen=True)
class FreezeConfig:
    """A freeze policy with its checked section of optimizer.json."""

    policy: RegisteredFreezePolicy
    options: Any
    where: str


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run needs to know.

    Attributes:
        train: the settings; paths are absolute, the seed is drawn, nothing is left to look up.
        sources: where each train.json key came from: ``train.json:3``, ``--lr`` or ``default``.
        overridden: what a flag has gone over: a key's other value in train.json, and where it stands.
        model: where the weights come from.
        resume: the checkpoint of an interrupted run that goes on; None for a new one.
        ema_model: the model that the moving average begins with; None for the weights that the run begins with.
        components: the components that train, by name, the UNet first.
        freezing: the freeze policies to apply, in the order of their sections.
        samples: the sample pictures to draw.
        validation: which pictures to validate on, and when; None for no validation.
        grad_scaler_tweaks: whether the fp16 gradient scaler's growth slows down in steps.
        settings_file: the file that is read again before every epoch; None where it is not.
        notes: lines that the user should see: what was overridden, ignored or is unusual.
    """

    train: TrainConfig
    sources: Mapping[str, str]
    model: ModelReference
    components: Mapping[str, ComponentConfig]
    freezing: tuple[FreezeConfig, ...] = ()
    resume: ResumePoint | None = None
    ema_model: ModelReference | None = None
    grad_scaler_tweaks: bool = True
    samples: SampleSettings = field(default_factory=SampleSettings)
    validation: Validation | None = None
    settings_file: SettingsFile | None = None
    notes: tuple[str, ...] = field(default=())
    overridden: Mapping[str, Given] = field(default_factory=dict)

    def located(self, error: ConfigError) -> ConfigError:
        """The same error, where problems that name a key but no place say where that key was set."""
        return ConfigError(problem if problem.where else self._located(problem) for problem in error.problems)

    def _located(self, problem: Problem) -> Problem:
        where = self.sources.get(problem.key, "default")
        if where == "default":
            return problem
        return replace(problem, where=where, key="" if where.startswith("--") else problem.key)
