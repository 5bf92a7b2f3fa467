from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
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
    *((name, "weight_decay", "weight_decay", value) for name in ALL for value in (0.8, 0.0)),
    *((name, "d0", "d", 1e-5) for name in ALL),
    *((name, "growth_rate", "growth_rate", 1.02) for name in ALL if name != "dadapt_lion"),
    *((name, "epsilon", "eps", 1e-5) for name in ("dadapt_adam", "dadapt_adan")),
    *(
        (name, "betas", "betas", value)
        for name in ("dadapt_adam", "dadapt_lion")
        for value in ((0.8, 0.95), (0.0, 0.0))
    ),
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


def saved_and_loaded(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_defaults():
    assert DAdaptAdamConfig() == DAdaptAdamConfig(
        lr=1.0, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0, decouple=True, use_bias_correction=False, d0=1e-6,
        growth_rate=None,
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
    assert type(optimizer) is CLASSES[name]
    assert (group["lr"], group["d"], group["weight_decay"]) == (1.0, 1e-6, config.weight_decay)
    assert group.get("growth_rate", math.inf) == math.inf
    assert group.get("decouple", True) is True


@pytest.mark.parametrize(("name", "option", "argument", "value"), OPTIONS)
def test_option_reaches_dadaptation(name, option, argument, value):
    assert create_optimizer(name, layer().parameters(), **{option: value}).param_groups[0][argument] == value


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_tested(name):
    assert {case[1] for case in OPTIONS if case[0] == name} == set(option_names(SPECS[name].config_type))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "lr", value) for name in ALL for value in (0, -1.0, "1", True)),
        *((name, "d0", 0) for name in ALL),
        *((name, "weight_decay", -0.1) for name in ALL),
        ("dadapt_adam", "betas", (0.9, 0.999, 0.9)), ("dadapt_adam", "epsilon", 0), ("dadapt_adam", "decouple", 1),
        ("dadapt_adam", "growth_rate", 1.0), ("dadapt_adam", "growth_rate", float("inf")),
        ("dadapt_adan", "betas", (0.9, 0.999)), ("dadapt_adan", "no_prox", None), ("dadapt_lion", "betas", (0.9, 1.0)),
        ("dadapt_lion", "epsilon", 1e-8), ("dadapt_sgd", "momentum", 1.0), ("dadapt_sgd", "betas", (0.9, 0.999)),
        ("dadapt_adam", "log_every", 1),
    ],
)  # fmt: skip
def test_bad_value_is_refused_by_name(name, option, value):
    with pytest.raises(ConfigError, match=option):
        create_optimizer(name, layer().parameters(), **{option: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dadapt_adam", {}), ("dadapt_adam", {"use_bias_correction": True, "growth_rate": 1.5}), ("dadapt_adan", {}),
        ("dadapt_lion", {}), ("dadapt_sgd", {}), ("dadapt_sgd", {"momentum": 0.5}),
    ],
)  # fmt: skip
def test_lowers_a_loss(name, options):
    module = layer()
    losses = train(module, create_optimizer(name, module.parameters(), **options), 200)
    assert losses[-1] < 0.8 * losses[0]


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


@pytest.mark.parametrize("name", ALL)
def test_building_prints_nothing(name, capsys):
    create_optimizer(name, layer().parameters(), weight_decay=0.01)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ALL)
def test_state_dict_round_trip_continues_exactly(name):
    module = layer()
    optimizer = create_optimizer(name, module.parameters(), weight_decay=0.01)
    train(module, optimizer, 3)
    resumed = copy.deepcopy(module)
    again = create_optimizer(name, resumed.parameters(), weight_decay=0.01)
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert train(module, optimizer, 3) == train(resumed, again, 3)
    assert optimizer.param_groups[0]["d"] == again.param_groups[0]["d"]


@pytest.mark.parametrize("name", ALL)
def test_parameters_names_and_groups_are_accepted(name):
    module = layer()
    plain = create_optimizer(name, module.parameters())
    assert [len(g["params"]) for g in plain.param_groups] == [2]
    named = create_optimizer(name, module.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    groups = create_optimizer(name, [{"params": [module.weight]}, {"params": [module.bias], "weight_decay": 0.5}])
    assert groups.param_groups[1]["weight_decay"] == 0.5


@pytest.mark.parametrize("name", ALL)
def test_learning_rate_of_zero_fails_only_where_the_spec_says_so(name):
    module = layer()
    optimizer = create_optimizer(name, module.parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    try:
        train(module, optimizer, 2)
    except ZeroDivisionError:
        assert not SPECS[name].lr_may_be_zero
    else:
        assert SPECS[name].lr_may_be_zero


def test_importing_the_plugin_imports_no_library():
    code = "import sys, ed_train_dadapt; print({'torch', 'dadaptation', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_specs():
    assert set(SPECS) == set(CLASSES)
    assert all(spec.learning_rate_free and not spec.shardable for spec in SPECS.values())
    assert SPECS["dadapt_adam"].recommended == {"lr": 1.0, "weight_decay": 0.8}
