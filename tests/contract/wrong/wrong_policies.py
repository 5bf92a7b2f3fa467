"""Freeze policies that are right but for one thing each: the section says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from ed_train import Bounds, FreezePolicy, Help, hookimpl

Layers = Annotated[int, Bounds(ge=0), Help("freeze this many of the first layers")]


@dataclass(frozen=True)
class Settings:
    layers: Layers = 0


@dataclass(frozen=True)
class FreezingSettings:
    layers: Layers = 1


@dataclass
class ChangeableSettings:
    layers: Layers = 0


@dataclass(frozen=True)
class UnexplainedSettings:
    layers: Annotated[int, Bounds(ge=0)] = 0


@dataclass(frozen=True)
class UntypedSettings:
    layers: Annotated[Any, Help("freeze this many of the first layers")] = 0


def chosen(module, config):
    """The parameters to freeze, by name."""
    if not hasattr(module, "encoder"):
        raise ValueError("not a text encoder")
    beginnings = tuple(f"encoder.layers.{i}." for i in range(config.layers))
    return {name: p for name, p in module.named_parameters() if beginnings and name.startswith(beginnings)}


def freeze(module, config):
    frozen = chosen(module, config)
    for p in frozen.values():
        p.requires_grad_(False)
    return frozen


def freeze_nothing(module, config):
    chosen(module, config)
    return []


def freeze_everything(module, config):
    chosen(module, config)
    if config.layers:
        module.requires_grad_(False)
    return [name for name, p in module.named_parameters() if not p.requires_grad]


def freeze_norms(module, config):
    norms = [n for n, m in module.named_modules() if type(m).__name__ == "LayerNorm" and config.layers]
    names = [f"{norm}.{name}" for norm in norms for name in ("weight", "bias")]
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return names


def return_names_twice(module, config):
    return [*freeze(module, config)] * 2


def return_other_names(module, config):
    return [f"text_model.{name}" for name in freeze(module, config)]


def unfreeze(module, config):
    frozen = freeze(module, config)
    for name, p in module.named_parameters():
        p.requires_grad_(name not in frozen)
    return frozen


def clear_weights(module, config):
    frozen = freeze(module, config)
    for p in frozen.values():
        p.data.zero_()
    return frozen


def freeze_the_next(module, config):
    chosen(module, config)
    training = [name for name, p in module.named_parameters() if p.requires_grad]
    for name in training[: config.layers]:
        module.get_parameter(name).requires_grad_(False)
    return [name for name, p in module.named_parameters() if not p.requires_grad]


def run_without_a_graph(module, config):
    import torch

    if config.layers:
        module.forward = torch.no_grad()(module.forward)
    return freeze(module, config)


def freeze_by_value(module, config):
    frozen = {name: p for name, p in chosen(module, config).items() if p.abs().sum().item() >= 0}
    for p in frozen.values():
        p.requires_grad_(False)
    return frozen


def trust_the_module(module, config):
    assert module.encoder.layers
    return freeze(module, config)


def switch_modes(module, config):
    if config.layers:
        module.eval()
    return freeze(module, config)


def print_names(module, config):
    frozen = freeze(module, config)
    print(*frozen)
    return frozen


def refuse_nothing(module, config):
    if not config.layers:
        raise ValueError("nothing to freeze")
    return freeze(module, config)


def return_nothing(module, config):
    freeze(module, config)


POLICIES = {
    "right_policy": {},
    "two_lines": {"summary": "one\ntwo"},
    "unexplained_policy": {"config_type": UnexplainedSettings},
    "changeable_policy": {"config_type": ChangeableSettings},
    "untyped_policy": {"config_type": UntypedSettings},
    "freezing_by_default": {"config_type": FreezingSettings},
    "freezing_nothing": {"apply": freeze_nothing},
    "freezing_everything": {"apply": freeze_everything},
    "returning_other_names": {"apply": return_other_names},
    "unfreezing": {"apply": unfreeze},
    "clearing_weights": {"apply": clear_weights},
    "freezing_the_next": {"apply": freeze_the_next},
    "running_without_a_graph": {"apply": run_without_a_graph},
    "freezing_by_value": {"apply": freeze_by_value},
    "switching_modes": {"apply": switch_modes},
    "printing_names": {"apply": print_names},
    "refusing_an_empty_section": {"apply": refuse_nothing},
    "returning_nothing": {"apply": return_nothing},
    "trusting_the_module": {"apply": trust_the_module},
    "returning_names_twice": {"apply": return_names_twice},
    "freezing_norms_if_there_are_any": {"apply": freeze_norms},
}


@hookimpl
def ed_register_freeze_policies() -> list[FreezePolicy]:
    usual = {"component": "text_encoder", "summary": "made up", "config_type": Settings, "apply": freeze}
    return [FreezePolicy(section=section, **{**usual, **more}) for section, more in POLICIES.items()]
