"""Plugins' optimizers that are right but for one thing each: the name says which."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

from ed_train import Fraction, Help, NonNegative, OptimizerSpec, Positive, hookimpl


@dataclass(frozen=True)
class Config:
    lr: Annotated[Positive, Help("learning rate")] = 0.02
    momentum: Annotated[Fraction, Help("share of the last update")] = 0.9
    weight_decay: Annotated[NonNegative, Help("weight decay")] = 0.0
    nesterov: Annotated[bool, Help("look ahead")] = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum")


@dataclass
class ChangeableConfig:
    lr: Annotated[Positive, Help("learning rate")] = 0.02


@dataclass(frozen=True)
class UnexplainedConfig:
    lr: Positive = 0.02


@dataclass(frozen=True)
class UnboundedConfig:
    lr: Annotated[float, Help("learning rate")] = 0.02


@dataclass(frozen=True)
class UntypedConfig:
    lr: Annotated[Positive, Help("learning rate")] = 0.02
    momentum: Annotated[Any, Help("share of the last update")] = 0.5


@dataclass(frozen=True)
class TextConfig:
    lr: Annotated[Positive, Help("learning rate")] = 0.02
    direction: Annotated[str, Help("down or up")] = "down"


@dataclass(frozen=True)
class TinyConfig(Config):
    lr: Annotated[Positive, Help("learning rate")] = 3e-4


@dataclass(frozen=True)
class PlainConfig:
    lr: Annotated[Positive, Help("learning rate")] = 0.02


def faulty(class_name: str = "", **replaced: Any) -> Any:
    """A build function: torch's SGD, or another class over it, with options of Config replaced."""

    def build(params, config):
        import faulty_classes
        import torch

        cls = getattr(faulty_classes, class_name) if class_name else torch.optim.SGD
        return cls(params, **{**vars(config), **replaced})

    return build


def printing(params, config):
    print("hello")
    return faulty()(params, config)


def zero_replaced(params, config):
    return faulty()(params, replace(config, momentum=config.momentum or 0.9))


def rounded(params, config):
    return faulty()(params, replace(config, momentum=round(config.momentum, 1)))


def half_the_lr(params, config):
    return faulty()(params, replace(config, lr=config.lr / 2))


def takes_apart(params, config):
    options = vars(config)
    momentum = options.pop("momentum")
    return faulty()(params, TinyConfig(**options, momentum=momentum))


def defaults_refused(params, config):
    if config == Config():
        raise RuntimeError("no defaults")
    return faulty()(params, config)


def reading_tensors(params, config):
    return faulty()([p for p in params if p.numel()], config)


def flattening(params, config):
    from ed_train.parameters import tensors_of

    return faulty()(tensors_of(params), config)


def with_text(params, config):
    import torch

    return torch.optim.SGD(params, lr=config.lr, maximize=config.direction == "up")


def state_bytes(config: Config, shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape) if config.momentum else 0


SPECS = {
    "right": {
        "per_parameter": True, "state_bytes": state_bytes, "usual_lr": (1e-3, 1),
        "advice": lambda config, plan: [plan.lr_scheduler],
    },
    "right_schedule_free": {
        "build": faulty("ScheduleFreeSgd"), "config_type": PlainConfig, "schedule_free": True, "state_bytes": 8,
    },
    "right_with_text": {"build": with_text, "config_type": TextConfig},
    "right_and_takes_its_config_apart": {"build": takes_apart, "shardable": False},
    "needs_closure": {"build": faulty("NeedsClosure")},
    "calls_it_step_size": {"build": faulty("CallsItStepSize")},
    "changes_types": {"build": faulty("ChangesTypes")},
    "draws_elsewhere": {"build": faulty("DrawsElsewhere")},
    "keeps_gradients": {"build": faulty("KeepsGradients")},
    "thaws_biases": {"build": faulty("ThawsBiases")},
    "seeds": {"build": faulty("Seeds")},
    "makes_torch_deterministic": {"build": faulty("MakesTorchDeterministic")},
    "rounded": {"build": rounded},
    "half_the_lr": {"build": half_the_lr},
    "option_in_groups_alone": {"build": faulty("IgnoresAnOption")},
    "decays_always": {"build": faulty("DecaysAlways")},
    "first_group_for_all": {"build": faulty("FirstGroupForAll")},
    "closure_without_gradients": {"build": faulty("ClosureWithoutGradients")},
    "divides_by_gradient": {"build": faulty("DividesByGradient"), "shardable": False},
    "normalizes_each": {"build": faulty("NormalizesEach")},
    "advises_on_two_schedules": {"advice": lambda config, plan: {"constant": [], "cosine": []}[plan.lr_scheduler]},
    "claims_to_unscale_little": {"build": faulty("ClaimsToUnscale"), "config_type": TinyConfig},
    "pairs_by_storage_in_small_steps": {"build": faulty("PairsByStorage"), "config_type": TinyConfig},
    "library_not_required": {"library": "numpy"},
    "two_lines_of_summary": {"summary": "one\ntwo"},
    "no_paper": {"paper": ""},
    "unexplained": {"config_type": UnexplainedConfig},
    "changeable": {"config_type": ChangeableConfig},
    "recommends_the_impossible": {"recommended": {"momentum": 1.5}},
    "unusual_default": {"usual_lr": (1, 2)},
    "usual_lr_upside_down": {"usual_lr": (1, 1e-6)},
    "advice_is_text": {"advice": lambda config, plan: "careful"},
    "slow_on_no_device": {"slow_on": {"gpu": "slow"}},
    "elsewhere": {"devices": ("xpu",)},
    "state_twice_as_large": {"state_bytes": lambda config, shape: 2 * state_bytes(config, shape)},
    "state_forgets_momentum": {"state_bytes": 4},
    "defaults_refused": {"build": defaults_refused},
    "printing": {"build": printing},
    "option_ignored": {"build": faulty(nesterov=False)},
    "zero_replaced": {"build": zero_replaced},
    "unbounded": {"config_type": UnboundedConfig},
    "untyped": {"config_type": UntypedConfig},
    "reading_tensors": {"build": reading_tensors},
    "flattening": {"build": flattening},
    "leaves_biases_out": {"build": faulty("LeavesBiasesOut")},
    "schedules_itself": {"build": faulty("SchedulesItself")},
    "upwards": {"build": faulty(maximize=True)},
    "decays_frozen": {"build": faulty("DecaysFrozen")},
    "forgets_schedules": {"build": faulty("ForgetsSchedules")},
    "fails_at_zero": {"build": faulty("DividesByLr")},
    "needlessly_above_zero": {"lr_may_be_zero": False},
    "refuses_small_gradients": {"build": faulty("RefusesSmallGradients")},
    "gradients_of_backward": {"build": faulty("UsesGradientsOfBackward")},
    "last_gradient_only": {"build": faulty("KeepsLastGradientOnly")},
    "couples_parameters": {"build": faulty("NormalizesGradients"), "per_parameter": True, "shardable": False},
    "claims_to_unscale": {"build": faulty("ClaimsToUnscale")},
    "never_skips": {"build": faulty("NeverSkips")},
    "loads_only_after_steps": {"build": faulty("LoadsOnlyAfterSteps")},
    "loads_without_momentum": {"build": faulty("LoadsWithoutMomentum")},
    "float32_only": {"build": faulty("Float32Only")},
    "casts_to_float32": {"build": faulty("CastsToFloat32")},
    "views_as_one_row": {"build": faulty("ViewsAsOneRow")},
    "pairs_by_storage": {"build": faulty("PairsByStorage")},
    "keeps_double": {"build": faulty("KeepsDouble"), "shardable": False},
    "keeps_an_object": {"build": faulty("KeepsAnObject")},
    "momentum_elsewhere": {"build": faulty("KeepsMomentumElsewhere")},
    "remembers_lr": {"build": faulty("RemembersLr")},
    "no_step_size": {"learning_rate_free": True},
    "lr_is_no_step_size": {"learning_rate_free": True, "effective_lr": lambda group: group["lr"]},
    "step_size_is_text": {"effective_lr": lambda group: f"{group['lr']}"},
    "switches_in_secret": {"build": faulty("Switches")},
    "does_not_switch": {"schedule_free": True},
    "switches_nothing": {"build": faulty("SwitchesNothing"), "schedule_free": True},
}  # fmt: skip


@hookimpl
def ed_register_optimizers() -> list[OptimizerSpec]:
    usual = {"summary": "made up", "config_type": Config, "build": faulty(), "paper": "https://example.org"}
    return [OptimizerSpec(name=name, **{**usual, **more}) for name, more in SPECS.items()]
