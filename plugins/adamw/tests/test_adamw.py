from __future__ import annotations

import copy
import io
import subprocess
import sys
from typing import Any

import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.specs import option_names
from ed_train_adamw import AdamWConfig, build, ed_register_optimizers

OPTIONS = [
    ("lr", "lr", 3e-4),
    ("lr", "lr", 0),
    ("betas", "betas", (0.8, 0.95)),
    ("betas", "betas", (0.0, 0.0)),
    ("epsilon", "eps", 1e-5),
    ("epsilon", "eps", 0.0),
    ("weight_decay", "weight_decay", 0.3),
    ("weight_decay", "weight_decay", 0.0),
    ("amsgrad", "amsgrad", True),
]


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Fit a fixed linear map; returns the loss before each step."""
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(32, 4, generator=generator), torch.randn(32, 3, generator=generator)
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
    assert AdamWConfig() == AdamWConfig(lr=1e-6, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01, amsgrad=False)
    (group,) = create_optimizer("adamw", layer().parameters()).param_groups
    assert (group["lr"], tuple(group["betas"]), group["eps"]) == (1e-6, (0.9, 0.999), 1e-8)
    assert (group["weight_decay"], group["amsgrad"]) == (0.01, False)


@pytest.mark.parametrize(("option", "argument", "value"), OPTIONS)
def test_option_reaches_torch(option, argument, value):
    optimizer = create_optimizer("adamw", layer().parameters(), **{option: value})
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0][argument] == value


def test_every_option_is_tested():
    assert {option for option, _, _ in OPTIONS} == set(option_names(AdamWConfig))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1e-6), ("lr", "1e-6"), ("lr", True), ("lr", float("inf")), ("betas", (0.9,)), ("betas", (0.9, 1.0)),
        ("betas", "0.9"), ("epsilon", -1.0), ("weight_decay", float("nan")), ("weight_decay", None), ("amsgrad", 1),
        ("eps", 1e-8), ("fused", True),
    ],
)  # fmt: skip
def test_bad_value_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=option):
        create_optimizer("adamw", layer().parameters(), **{option: value})


@pytest.mark.parametrize("amsgrad", [False, True])
def test_lowers_a_loss(amsgrad):
    module = layer()
    losses = train(module, create_optimizer("adamw", module.parameters(), lr=0.05, amsgrad=amsgrad), 50)
    assert losses[-1] < 0.8 * losses[0]


def test_fused_where_all_parameters_fit():
    module = layer()
    for params in (list(module.parameters()), [{"params": list(module.parameters())}], list(module.named_parameters())):
        assert build(params, AdamWConfig()).param_groups[0]["fused"] is True


def test_not_fused_where_one_parameter_does_not_fit():
    numbers = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    elsewhere = torch.nn.Parameter(torch.empty(3, device="meta"))
    for stranger in (numbers, elsewhere):
        module = layer()
        optimizer = build([{"params": [stranger]}, {"params": list(module.parameters())}], AdamWConfig())
        assert [group["fused"] for group in optimizer.param_groups] == [None, None]
        losses = train(module, optimizer, 3)
        assert losses[-1] < losses[0]


def test_fused_and_plain_agree():
    fused, plain = layer(), layer()
    train(fused, create_optimizer("adamw", fused.parameters(), lr=0.05), 10)
    train(plain, torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=0.01, foreach=False), 10)
    torch.testing.assert_close(fused.weight, plain.weight)


def test_state_dict_round_trip_continues_exactly():
    module = layer()
    optimizer = create_optimizer("adamw", module.parameters(), lr=0.05, amsgrad=True)
    train(module, optimizer, 3)
    resumed = copy.deepcopy(module)
    again = create_optimizer("adamw", resumed.parameters(), lr=0.05, amsgrad=True)
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert train(module, optimizer, 3) == train(resumed, again, 3)


def test_parameters_names_and_groups_are_accepted():
    module = layer()
    plain = create_optimizer("adamw", module.parameters())
    assert [len(g["params"]) for g in plain.param_groups] == [2]
    named = create_optimizer("adamw", module.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    groups = create_optimizer("adamw", [{"params": [module.weight]}, {"params": [module.bias], "weight_decay": 0.0}])
    assert [g["weight_decay"] for g in groups.param_groups] == [0.01, 0.0]


def test_importing_the_plugin_imports_no_torch():
    code = "import sys, ed_train_adamw; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_spec():
    (spec,) = ed_register_optimizers()
    assert (spec.name, spec.learning_rate_free, spec.shardable, spec.lr_may_be_zero) == (
        "adamw",
        False,
        True,
        True,
    )
