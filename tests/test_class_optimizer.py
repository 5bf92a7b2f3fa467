"""Optimizer classes without a plugin: ``"optimizer": "torch.optim:NAdam"``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.config.describe import annotations_of, help_of
from ed_train.registry import load_registry

MODULE = '''
import torch


class Strict(torch.optim.SGD):
    """Everything that a constructor can ask for."""

    def __init__(self, params, lr, factor, *, betas=(0.9, 0.99), k: int = 5, decay=0, mode="min", flag=False,
                 limit: "float | None" = None, odd=object(), **others):
        self.seen = dict(lr=lr, factor=factor, betas=betas, k=k, decay=decay, mode=mode, flag=flag, limit=limit)
        super().__init__(params, lr=lr)


class NoLr(torch.optim.SGD):
    def __init__(self, params, size=1.0):
        super().__init__(params, lr=size)


class Switched(torch.optim.SGD):
    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_own_optimizers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_own_optimizers"
    sys.modules.pop("my_own_optimizers", None)


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3))]


def test_a_class_of_torch_trains_with_its_options() -> None:
    optimizer = create_optimizer("torch.optim:NAdam", parameters(), lr=0.1, betas=[0.8, 0.9], momentum_decay=0)
    assert type(optimizer) is torch.optim.NAdam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["momentum_decay"]) == (0.1, (0.8, 0.9), 0)
    assert group["eps"] == torch.optim.NAdam(parameters()).defaults["eps"]


def test_a_class_may_be_called_as_an_installed_optimizer_is() -> None:
    assert type(create_optimizer("torch.optim:AdamW", parameters())) is torch.optim.AdamW


def test_it_is_listed_as_unverified_with_its_distribution() -> None:
    registered = load_registry().find("torch.optim:NAdam")
    assert registered.verified is False
    assert "unverified" in registered.spec.summary
    assert (registered.distribution, registered.version) == ("torch", torch.__version__.partition("+")[0]) or (
        registered.distribution == "torch"
    )


def test_every_kind_of_argument_reaches_the_constructor(module) -> None:
    options = {
        "lr": 0.1, "factor": 2.5, "betas": (0.5, 1), "k": 3, "decay": 0.25, "mode": "max", "flag": True, "limit": 1.5,
    }  # fmt: skip
    optimizer = create_optimizer(f"{module}:Strict", parameters(), **options)
    assert {key: optimizer.seen[key] for key in options} == options
    plain = create_optimizer(f"{module}:Strict", parameters(), lr=0, factor=0)
    assert (plain.seen["lr"], plain.seen["factor"], plain.seen["k"], plain.seen["limit"]) == (0, 0, 5, None)


def test_an_argument_without_a_default_says_that_it_has_to_be_set(module) -> None:
    options = annotations_of(load_registry().find(f"{module}:Strict").spec.config_type)
    assert [name for name, annotation in options.items() if "no default: set it" in help_of(annotation)] == [
        "lr", "factor",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1}, "Strict needs factor; set it"),
        ({}, "Strict needs lr and factor; set them"),
        ({"lr": -1, "factor": 1}, "lr: got -1 (number); expected a number >= 0"),
        ({"lr": math.inf, "factor": 1}, "lr"),
        ({"lr": 1, "factor": 1, "k": 2.5}, "k: got 2.5 (number); expected an integer"),
        ({"lr": 1, "factor": 1, "flag": 1}, "flag: got 1 (number); expected true or false"),
        ({"lr": 1, "factor": 1, "betas": 0.5}, "betas: got 0.5 (number); expected a list of 2"),
        ({"lr": 1, "factor": 1, "mode": 2}, "mode: got 2 (number); expected a text"),
        ({"lr": 1, "factor": 1, "odd": 2}, "odd: unknown key"),
        ({"lr": 1, "factor": 1, "decai": 2}, "decai: unknown key; did you mean 'decay'?"),
    ],
)
def test_options_are_checked_against_the_signature(options, message, module) -> None:
    with pytest.raises(ConfigError, match=r".*") as error:
        create_optimizer(f"{module}:Strict", parameters(), **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.optim:NAdan", "NAdan does not exist; did you mean NAdam?"),
        ("torch.optim:nadam", "nadam does not exist; did you mean NAdam?"),
        ("torch.optim.NAdam", "a class without a plugin is written module:Class, with a colon"),
        ("torch.optim:Optimizer", "Optimizer is no subclass of torch.optim.Optimizer"),
        ("os:system", "system is no subclass of torch.optim.Optimizer; optimizers there: none"),
        ("torch.nn:Linear", "Linear is no subclass of torch.optim.Optimizer"),
        ("no_such_package.optim:Best", "the module no_such_package.optim cannot be imported: No module named"),
        ("torch.optim:LBFGS", "its step() needs closure, which this trainer does not give"),
        ("my_own_optimizers:NoLr", "its constructor has no argument lr"),
        ("my own:NAdam", "no installed optimizer is called"),
    ],
)
def test_what_is_no_usable_optimizer_is_refused(name, message, module) -> None:
    with pytest.raises(ConfigError) as error:
        load_registry().find(name)
    assert message in str(error.value)


def test_a_module_that_exits_does_not_end_the_program(tmp_path, monkeypatch) -> None:
    (tmp_path / "exits_at_once.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="exits_at_once cannot be imported: SystemExit: 0"):
        load_registry().find("exits_at_once:Sgd")


def test_train_and_eval_are_found(module) -> None:
    assert load_registry().find(f"{module}:Switched").spec.schedule_free is True
    assert load_registry().find("torch.optim:SGD").spec.schedule_free is False


@pytest.mark.slow
def test_a_run_with_a_class(run_cli, write_optimizer, capsys) -> None:
    write_optimizer({"base": {"optimizer": "torch.optim:NAdam", "lr": 1e-3, "eps": 1e-7, "epsilon": 1e-7}})
    assert run_cli(max_steps=2, save_nothing=True) == 0
    out = capsys.readouterr().out
    assert "with torch.optim:NAdam" in out
    assert "no plugin" in out
    assert "base.epsilon has no effect on the unet: torch.optim:NAdam has no epsilon; it has eps" in out
