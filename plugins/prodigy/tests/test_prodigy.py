from __future__ import annotations

import math

import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.specs import option_names
from ed_train_prodigy import ProdigyConfig, ed_register_optimizers, effective_lr
from prodigyopt import Prodigy

OPTIONS = [
    ("lr", "lr", 0.5),
    ("betas", "betas", (0.8, 0.95)),
    ("beta3", "beta3", 0.9),
    ("epsilon", "eps", 1e-5),
    ("weight_decay", "weight_decay", 0.3),
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


def test_defaults():
    assert ProdigyConfig() == ProdigyConfig(
        lr=1.0, betas=(0.9, 0.999), beta3=None, epsilon=1e-8, weight_decay=0.0, decouple=True, use_bias_correction=True,
        safeguard_warmup=True, d0=1e-6, d_coef=1.0, growth_rate=None, slice_p=1,
        implementation="fast",
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
    assert isinstance(optimizer, Prodigy)
    assert optimizer.param_groups[0][argument] == value


def test_every_option_is_tested():
    assert {option for option, _, _ in OPTIONS} | {"implementation"} == set(option_names(ProdigyConfig))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0),
        ("epsilon", 0),
        ("d0", 0),
        ("d_coef", 0.0),
        ("growth_rate", 1.0),
        ("slice_p", 0),
        ("fsdp_in_use", True),
    ],
)
def test_what_prodigyopt_cannot_use_is_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        create_optimizer("prodigy", layer().parameters(), **{option: value})


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


def test_spec():
    (spec,) = ed_register_optimizers()
    assert (spec.name, spec.learning_rate_free, spec.shardable, spec.lr_may_be_zero) == (
        "prodigy", True, False, True,
    )  # fmt: skip
    assert spec.recommended.items() >= {"lr": 1.0, "weight_decay": 0.01}.items()
