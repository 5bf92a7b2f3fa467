from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.specs import option_names
from ed_train_prodigy import ProdigyConfig, ed_register_optimizers, effective_lr
from prodigyopt import Prodigy

OPTIONS = [
    ("lr", "lr", 0.5),
    ("betas", "betas", (0.8, 0.95)),
    ("betas", "betas", (0.0, 0.0)),
    ("beta3", "beta3", 0.9),
    ("beta3", "beta3", 0.0),
    ("epsilon", "eps", 1e-5),
    ("weight_decay", "weight_decay", 0.3),
    ("weight_decay", "weight_decay", 0.0),
    ("decouple", "decouple", False),
    ("use_bias_correction", "use_bias_correction", False),
    ("safeguard_warmup", "safeguard_warmup", False),
    ("d0", "d0", 1e-5),
    ("d_coef", "d_coef", 2.0),
    ("growth_rate", "growth_rate", 1.02),
    ("slice_p", "slice_p", 11),
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
    assert ProdigyConfig() == ProdigyConfig(
        lr=1.0, betas=(0.9, 0.999), beta3=None, epsilon=1e-8, weight_decay=0.0, decouple=True, use_bias_correction=True,
        safeguard_warmup=True, d0=1e-6, d_coef=1.0, growth_rate=None, slice_p=1,
    )  # fmt: skip
    (group,) = create_optimizer("prodigy", layer().parameters()).param_groups
    expected = {
        "lr": 1.0, "betas": (0.9, 0.999), "beta3": None, "eps": 1e-8, "weight_decay": 0.0, "decouple": True,
        "use_bias_correction": True, "safeguard_warmup": True, "d0": 1e-6, "d": 1e-6, "d_coef": 1.0,
        "growth_rate": math.inf, "slice_p": 1, "fsdp_in_use": False,
    }  # fmt: skip
    assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize(("option", "argument", "value"), OPTIONS)
def test_option_reaches_prodigyopt(option, argument, value):
    optimizer = create_optimizer("prodigy", layer().parameters(), **{option: value})
    assert type(optimizer) is Prodigy
    assert optimizer.param_groups[0][argument] == value


def test_every_option_is_tested():
    assert {option for option, _, _ in OPTIONS} == set(option_names(ProdigyConfig))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0), ("lr", "1"), ("lr", True), ("betas", (0.9,)), ("betas", (0.9, 1.0)), ("beta3", 1.0), ("epsilon", 0),
        ("weight_decay", -0.1), ("decouple", None), ("use_bias_correction", 1), ("safeguard_warmup", "yes"), ("d0", 0),
        ("d_coef", 0.0), ("growth_rate", 1.0), ("growth_rate", float("inf")), ("slice_p", 0), ("slice_p", 1.5),
        ("momentum", 0.9), ("fsdp_in_use", True),
    ],
)  # fmt: skip
def test_bad_value_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=option):
        create_optimizer("prodigy", layer().parameters(), **{option: value})


@pytest.mark.parametrize("options", [{}, {"slice_p": 3}, {"growth_rate": 1.5}, {"betas": (0.0, 0.99)}])
def test_lowers_a_loss(options):
    module = layer()
    losses = train(module, create_optimizer("prodigy", module.parameters(), **options), 200)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("use_bias_correction", [True, False])
def test_effective_lr_is_the_step_size_of_the_next_step(use_bias_correction):
    module = layer()
    optimizer = create_optimizer(
        "prodigy", module.parameters(), lr=0.5, d0=1e-3, use_bias_correction=use_bias_correction
    )
    (group,) = optimizer.param_groups
    for _ in range(5):
        expected, before = effective_lr(group), module.weight.detach().clone()
        train(module, optimizer, 1)
        state = optimizer.state[module.weight]
        update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["d"] * group["eps"])
        torch.testing.assert_close(module.weight.detach(), before - expected * update, rtol=0, atol=1e-12)
        assert effective_lr(group) > 0


def test_building_prints_nothing(capsys):
    create_optimizer("prodigy", layer().parameters(), weight_decay=0.01)
    assert capsys.readouterr() == ("", "")


def test_state_dict_round_trip_continues_exactly():
    module = layer()
    optimizer = create_optimizer("prodigy", module.parameters(), weight_decay=0.01)
    train(module, optimizer, 3)
    resumed = copy.deepcopy(module)
    again = create_optimizer("prodigy", resumed.parameters(), weight_decay=0.01)
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert train(module, optimizer, 3) == train(resumed, again, 3)
    assert optimizer.param_groups[0]["d"] == again.param_groups[0]["d"]


def test_parameters_names_and_groups_are_accepted():
    module = layer()
    plain = create_optimizer("prodigy", module.parameters())
    assert [len(g["params"]) for g in plain.param_groups] == [2]
    named = create_optimizer("prodigy", module.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    groups = create_optimizer("prodigy", [{"params": [module.weight]}, {"params": [module.bias], "weight_decay": 0.5}])
    assert [g["weight_decay"] for g in groups.param_groups] == [0.0, 0.5]


def test_importing_the_plugin_imports_no_library():
    code = "import sys, ed_train_prodigy; print({'torch', 'prodigyopt', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_learning_rate_of_zero_does_not_fail():
    module = layer()
    optimizer = create_optimizer("prodigy", module.parameters())
    for lr in (0.0, 1.0, 0.0):  # a warmup from 0 and a decay to 0
        optimizer.param_groups[0]["lr"] = lr
        assert math.isfinite(train(module, optimizer, 2)[-1])


def test_spec():
    (spec,) = ed_register_optimizers()
    assert (spec.name, spec.learning_rate_free, spec.shardable, spec.lr_may_be_zero) == (
        "prodigy", True, False, True,
    )  # fmt: skip
    assert spec.recommended == {"lr": 1.0, "weight_decay": 0.01}
