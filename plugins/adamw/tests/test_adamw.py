from __future__ import annotations

import pytest
import torch
from ed_train import create_optimizer
from ed_train.specs import option_names
from ed_train.testing.toy import Run, make_toy
from ed_train_adamw import AdamWConfig, build, ed_register_optimizers

OPTIONS = [
    ("lr", "lr", 3e-4),
    ("betas", "betas", (0.8, 0.95)),
    ("epsilon", "eps", 1e-5),
    ("weight_decay", "weight_decay", 0.3),
    ("amsgrad", "amsgrad", True),
]


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


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


def test_fused_where_all_parameters_fit():
    module = layer()
    for params in (list(module.parameters()), [{"params": list(module.parameters())}], list(module.named_parameters())):
        assert build(params, AdamWConfig()).param_groups[0]["fused"] is True


def test_not_fused_where_one_parameter_does_not_fit():
    numbers = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    elsewhere = torch.nn.Parameter(torch.empty(3, device="meta"))
    for stranger in (numbers, elsewhere):
        module = make_toy("cpu")
        optimizer = build([{"params": [stranger]}, {"params": list(module.parameters())}], AdamWConfig())
        assert [group["fused"] for group in optimizer.param_groups] == [None, None]
        run = Run(module, optimizer)
        assert run.loss() > run.train(3).loss()


def test_fused_and_plain_agree():
    fused, plain = make_toy("cpu"), make_toy("cpu")
    Run(fused, create_optimizer("adamw", fused.parameters(), lr=0.05)).train(10)
    Run(plain, torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=0.01, foreach=False)).train(10)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def test_spec():
    (spec,) = ed_register_optimizers()
    assert (spec.name, spec.learning_rate_free, spec.shardable, spec.lr_may_be_zero) == (
        "adamw",
        False,
        True,
        True,
    )
