from __future__ import annotations

import warnings

import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.specs import option_names
from ed_train_lion import LionConfig, ed_register_optimizers
from lion_pytorch import Lion

OPTIONS = [
    ("lr", 3e-4),
    ("betas", (0.8, 0.95)),
    ("weight_decay", 0.3),
]


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def test_defaults():
    assert LionConfig() == LionConfig(
        lr=1e-7, betas=(0.9, 0.99), weight_decay=0.1, decoupled_weight_decay=False,
        implementation="fast",
    )  # fmt: skip
    optimizer = create_optimizer("lion", layer().parameters())
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (1e-7, (0.9, 0.99), 0.1)
    assert optimizer.decoupled_wd is False


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_option_reaches_lion_pytorch(option, value):
    optimizer = create_optimizer("lion", layer().parameters(), **{option: value})
    assert isinstance(optimizer, Lion)
    assert optimizer.param_groups[0][option] == value


def test_decoupled_weight_decay_takes_a_share_of_the_weights():
    module = layer()
    before = module.weight.detach().clone()
    optimizer = create_optimizer("lion", [module.weight], lr=1e-9, weight_decay=0.01, decoupled_weight_decay=True)
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before * 0.99)


def test_every_option_is_tested():
    assert {option for option, _ in OPTIONS} | {"decoupled_weight_decay", "implementation"} == set(
        option_names(LionConfig)
    )


@pytest.mark.parametrize(("option", "value"), [("lr", 0), ("betas", (0.9, 1.0)), ("use_triton", True)])
def test_what_lion_pytorch_cannot_use_is_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        create_optimizer("lion", layer().parameters(), **{option: value})


def test_strong_decoupled_weight_decay_warns():
    with pytest.warns(UserWarning, match=r"weight_decay=0\.1 a share per step: it takes 10% of every weight"):
        LionConfig(decoupled_weight_decay=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LionConfig(decoupled_weight_decay=True, weight_decay=1e-6)
        LionConfig(weight_decay=0.5)


def test_spec():
    (spec,) = ed_register_optimizers()
    assert (spec.name, spec.library, spec.shardable) == ("lion", "lion-pytorch", True)
    assert spec.recommended == {"lr": 1e-7, "weight_decay": 0.1}
