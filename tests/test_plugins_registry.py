"""What every optimizer that is installed must do; a new one is tested without an edit here."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import math
import re
from typing import Any, get_type_hints

import pytest
import torch
from ed_train import Help, create_optimizer, list_optimizers
from ed_train.api import installed_plugins
from ed_train.registry import RegisteredOptimizer

INSTALLED = {f"{o.distribution}:{o.spec.name}": o for o in installed_plugins()}
POLICIES = {p.policy.section: p.policy for p in installed_plugins().freeze_policies}

every_optimizer = pytest.mark.parametrize("name", INSTALLED)
every_policy = pytest.mark.parametrize("section", POLICIES)


def device_for(registered: RegisteredOptimizer) -> torch.device:
    """A device that the optimizer runs on; skips the test where there is none."""
    for kind in registered.spec.devices or ("cpu",):
        if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
            return torch.device(kind)
    pytest.skip(f"{registered.spec.name} needs {' or '.join(registered.spec.devices)}")


def layer(device: torch.device) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(8, 4).to(device)


def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Fit a fixed linear map; returns the loss before each step."""
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(32, size, generator=generator).to(device) for size in (8, 4))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(module(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_registry_is_listed() -> None:
    assert list_optimizers() == sorted({o.spec.name for o in INSTALLED.values()})
    assert len(INSTALLED) >= 1


@every_optimizer
def test_lowers_a_loss_with_its_defaults(name: str) -> None:
    module = layer(device_for(INSTALLED[name]))
    losses = train(module, create_optimizer(name, module.parameters()), 100)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


@every_optimizer
def test_holds_exactly_the_parameters(name: str) -> None:
    module = layer(torch.device("cpu"))
    optimizer = create_optimizer(name, module.parameters())
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in module.parameters()]


@every_optimizer
def test_accepts_groups_and_names(name: str) -> None:
    module = layer(torch.device("cpu"))
    groups = create_optimizer(name, ({"params": [p]} for p in module.parameters()))
    assert [[id(p) for p in g["params"]] for g in groups.param_groups] == [[id(p)] for p in module.parameters()]
    named = create_optimizer(name, module.named_parameters())
    assert [id(p) for p in named.param_groups[0]["params"]] == [id(p) for p in module.parameters()]


@every_optimizer
def test_state_dict_round_trip_continues_exactly(name: str) -> None:
    module = layer(device_for(INSTALLED[name]))
    optimizer = create_optimizer(name, module.parameters())
    train(module, optimizer, 3)
    resumed = copy.deepcopy(module)
    again = create_optimizer(name, resumed.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(module, optimizer, 3) == train(resumed, again, 3)


@every_optimizer
def test_recommended_settings_are_valid(name: str) -> None:
    spec = INSTALLED[name].spec
    assert create_optimizer(name, layer(torch.device("cpu")).parameters(), **spec.recommended)


@every_optimizer
def test_effective_lr_is_a_step_size(name: str) -> None:
    spec = INSTALLED[name].spec
    assert not spec.learning_rate_free or spec.effective_lr is not None
    module = layer(device_for(INSTALLED[name]))
    optimizer = create_optimizer(name, module.parameters())
    train(module, optimizer, 2)
    lr = spec.effective_lr(optimizer.param_groups[0]) if spec.effective_lr else optimizer.param_groups[0]["lr"]
    assert isinstance(lr, float)
    assert 0 < lr < math.inf


@every_optimizer
def test_building_prints_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    create_optimizer(name, layer(torch.device("cpu")).parameters())
    assert capfd.readouterr() == ("", "")


@every_optimizer
def test_says_what_it_is(name: str) -> None:
    spec = INSTALLED[name].spec
    assert spec.summary
    assert "\n" not in spec.summary
    assert len(spec.summary) <= 100
    assert spec.paper.startswith("https://")


@every_optimizer
def test_library_is_a_dependency_of_the_distribution(name: str) -> None:
    registered = INSTALLED[name]
    requires = importlib.metadata.requires(registered.distribution) or []
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in requires}  # type: ignore[index]
    assert "ed-train" in names
    assert registered.spec.library in ("", *names)


def check_options(config_type: type[Any]) -> None:
    assert config_type.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for option, annotation in get_type_hints(config_type, include_extras=True).items():
        texts = [m.text for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Help)]
        assert len(texts) == 1, f"{option} has no Help"
        assert texts[0]
        assert "\n" not in texts[0]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config_type(), option, None)


@every_optimizer
def test_options_are_frozen_and_explained(name: str) -> None:
    check_options(INSTALLED[name].spec.config_type)


@every_policy
def test_options_of_freeze_policies_are_frozen_and_explained(section: str) -> None:
    assert POLICIES[section].summary
    check_options(POLICIES[section].config_type)
