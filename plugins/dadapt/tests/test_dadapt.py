from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import dadaptation
import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.specs import option_names
from ed_train_dadapt import ed_register_optimizers
from ed_train_dadapt.configs import DAdaptAdamConfig, DAdaptAdanConfig, DAdaptLionConfig, DAdaptSGDConfig

SPECS = {spec.name: spec for spec in ed_register_optimizers()}
CLASSES = {
    "dadapt_adam": dadaptation.DAdaptAdam,
    "dadapt_adan": dadaptation.DAdaptAdan,
    "dadapt_lion": dadaptation.DAdaptLion,
    "dadapt_sgd": dadaptation.DAdaptSGD,
}
ALL = list(CLASSES)
OPTIONS = [
    *((name, "lr", "lr", 0.5) for name in ALL),
    *((name, "weight_decay", "weight_decay", 0.8) for name in ALL),
    *((name, "d0", "d", 1e-5) for name in ALL),
    *((name, "growth_rate", "growth_rate", 1.02) for name in ALL if name != "dadapt_lion"),
    *((name, "epsilon", "eps", 1e-5) for name in ("dadapt_adam", "dadapt_adan")),
    *((name, "betas", "betas", (0.8, 0.95)) for name in ("dadapt_adam", "dadapt_lion")),
    ("dadapt_adan", "betas", "betas", (0.9, 0.8, 0.95)),
    ("dadapt_adam", "decouple", "decouple", False),
    ("dadapt_adam", "use_bias_correction", "use_bias_correction", True),
    ("dadapt_adan", "no_prox", "no_prox", True),
    ("dadapt_sgd", "momentum", "momentum", 0.9),
]


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3, dtype=torch.float64)


def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Fit a fixed linear map; returns the loss before each step."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(32, 3, generator=generator, dtype=torch.float64)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(module(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_defaults():
    assert DAdaptAdamConfig() == DAdaptAdamConfig(
        lr=1.0, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0, decouple=True, use_bias_correction=False, d0=1e-6,
        growth_rate=None, implementation="fast",
    )  # fmt: skip
    assert DAdaptAdanConfig() == DAdaptAdanConfig(
        lr=1.0, betas=(0.98, 0.92, 0.99), epsilon=1e-8, weight_decay=0.02, no_prox=False, d0=1e-6, growth_rate=None
    )
    assert DAdaptLionConfig() == DAdaptLionConfig(lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, d0=1e-6)
    assert DAdaptSGDConfig() == DAdaptSGDConfig(lr=1.0, momentum=0.0, weight_decay=0.0, d0=1e-6, growth_rate=None)


@pytest.mark.parametrize("name", ALL)
def test_builds_the_class_with_its_defaults(name):
    optimizer = create_optimizer(name, layer().parameters())
    (group,) = optimizer.param_groups
    config = SPECS[name].config_type()
    assert isinstance(optimizer, CLASSES[name])
    assert (group["lr"], group["d"], group["weight_decay"]) == (1.0, 1e-6, config.weight_decay)
    assert group.get("growth_rate", math.inf) == math.inf
    assert group.get("decouple", True) is True


@pytest.mark.parametrize(("name", "option", "argument", "value"), OPTIONS)
def test_option_reaches_dadaptation(name, option, argument, value):
    assert create_optimizer(name, layer().parameters(), **{option: value}).param_groups[0][argument] == value


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_tested(name):
    assert {case[1] for case in OPTIONS if case[0] == name} == set(option_names(SPECS[name].config_type)) - {
        "implementation"
    }


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, option, 0) for name in ALL for option in ("lr", "d0")), ("dadapt_adam", "epsilon", 0),
        ("dadapt_adam", "growth_rate", 1.0), ("dadapt_lion", "epsilon", 1e-8), ("dadapt_adam", "log_every", 1),
    ],
)  # fmt: skip
def test_what_dadaptation_cannot_use_is_refused(name, option, value):
    with pytest.raises(ConfigError, match=option):
        create_optimizer(name, layer().parameters(), **{option: value})


def used_lr(name: str, group: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], grad: Any) -> Any:
    """The step size that a step used for each element, read from what it did to its state."""
    if name == "dadapt_lion":
        return (after["weight"] - before["weight"]).abs()
    if name == "dadapt_sgd":
        return (after["s"] - before["s"]) / grad
    beta1 = group["betas"][0]
    return (after["exp_avg"] - beta1 * before["exp_avg"]) / (1 - beta1) / grad


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in ALL), ("dadapt_adam", {"use_bias_correction": True})]
)
def test_effective_lr_is_the_step_size_of_the_next_step(name, options):
    module = layer()
    optimizer = create_optimizer(name, module.parameters(), lr=0.5, d0=1e-3, **options)
    (group,) = optimizer.param_groups
    train(module, optimizer, 1)  # before its first step dadapt_sgd does not know the norm that it divides by
    for _ in range(4):
        expected = SPECS[name].effective_lr(group)
        before = copy.deepcopy({**optimizer.state[module.weight], "weight": module.weight.detach()})
        train(module, optimizer, 1)
        after = {**optimizer.state[module.weight], "weight": module.weight.detach()}
        used = used_lr(name, group, before, after, module.weight.grad)
        torch.testing.assert_close(used, torch.full_like(used, expected), rtol=1e-6, atol=0)


def test_effective_lr_before_the_first_step():
    for name in ALL:
        (group,) = create_optimizer(name, layer().parameters(), lr=0.5, d0=1e-3).param_groups
        assert SPECS[name].effective_lr(group) == 0.5 * 1e-3


def test_specs():
    assert set(SPECS) == set(CLASSES)
    assert all(spec.learning_rate_free and not spec.shardable for spec in SPECS.values())
    assert SPECS["dadapt_adam"].recommended == {"lr": 1.0, "weight_decay": 0.8}
