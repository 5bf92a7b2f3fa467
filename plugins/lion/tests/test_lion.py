from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.specs import option_names
from ed_train_lion import LionConfig, ed_register_optimizers
from lion_pytorch import Lion

OPTIONS = [
    ("lr", 3e-4),
    ("betas", (0.8, 0.95)),
    ("betas", (0.0, 0.0)),
    ("weight_decay", 0.3),
    ("weight_decay", 0.0),
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
    assert LionConfig() == LionConfig(lr=1e-7, betas=(0.9, 0.99), weight_decay=0.1, decoupled_weight_decay=False)
    optimizer = create_optimizer("lion", layer().parameters())
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (1e-7, (0.9, 0.99), 0.1)
    assert optimizer.decoupled_wd is False


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_option_reaches_lion_pytorch(option, value):
    optimizer = create_optimizer("lion", layer().parameters(), **{option: value})
    assert type(optimizer) is Lion
    assert optimizer.param_groups[0][option] == value


def test_decoupled_weight_decay_takes_a_share_of_the_weights():
    module = layer()
    before = module.weight.detach().clone()
    optimizer = create_optimizer("lion", [module.weight], lr=1e-9, weight_decay=0.01, decoupled_weight_decay=True)
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before * 0.99)


def test_every_option_is_tested():
    assert {option for option, _ in OPTIONS} | {"decoupled_weight_decay"} == set(option_names(LionConfig))


def test_strong_decoupled_weight_decay_warns():
    with pytest.warns(UserWarning, match=r"weight_decay=0\.1 a share per step: it takes 10% of every weight"):
        LionConfig(decoupled_weight_decay=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LionConfig(decoupled_weight_decay=True, weight_decay=1e-6)
        LionConfig(weight_decay=0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0), ("lr", -1e-6), ("lr", "1e-6"), ("lr", True), ("lr", float("inf")), ("betas", (0.9,)),
        ("betas", (0.9, 1.0)), ("weight_decay", -0.1), ("weight_decay", None), ("decoupled_weight_decay", 1),
        ("epsilon", 1e-8), ("use_triton", True),
    ],
)  # fmt: skip
def test_bad_value_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=option):
        create_optimizer("lion", layer().parameters(), **{option: value})


def test_lowers_a_loss():
    module = layer()
    losses = train(module, create_optimizer("lion", module.parameters(), lr=0.01), 60)
    assert losses[-1] < 0.8 * losses[0]


def test_state_dict_round_trip_continues_exactly():
    module = layer()
    optimizer = create_optimizer("lion", module.parameters(), lr=0.01)
    train(module, optimizer, 3)
    resumed = copy.deepcopy(module)
    again = create_optimizer("lion", resumed.parameters(), lr=0.01)
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert train(module, optimizer, 3) == train(resumed, again, 3)


def test_parameters_names_and_groups_are_accepted():
    module = layer()
    plain = create_optimizer("lion", module.parameters())
    assert [len(g["params"]) for g in plain.param_groups] == [2]
    named = create_optimizer("lion", module.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    groups = create_optimizer("lion", [{"params": [module.weight]}, {"params": [module.bias], "weight_decay": 0.0}])
    assert [g["weight_decay"] for g in groups.param_groups] == [0.1, 0.0]


def test_importing_the_plugin_imports_no_library():
    code = "import sys, ed_train_lion; print({'torch', 'lion_pytorch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_spec():
    (spec,) = ed_register_optimizers()
    assert (spec.name, spec.library, spec.shardable) == ("lion", "lion-pytorch", True)
    assert spec.recommended == {"lr": 1e-7, "weight_decay": 0.1}
