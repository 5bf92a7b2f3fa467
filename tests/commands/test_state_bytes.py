"""The bytes of state that an optimizer's spec declares are those that a real step makes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ed_train.api import build_optimizer, installed_plugins
from ed_train.config.validate import validated
from ed_train.registry import RegisteredOptimizer
from ed_train.specs import option_names

INSTALLED = {o.spec.name: o for o in installed_plugins() if o.spec.state_bytes is not None}
OURS = {
    "adamw", "adamw8bit", "dadapt_adam", "dadapt_adan", "dadapt_lion", "dadapt_sgd", "lion", "lion8bit",
    "paged_adamw8bit", "paged_lion8bit", "prodigy",
}  # fmt: skip
SHAPES = [(), (1,), (7,), (320,), (4095,), (4096,), (4097,), (64, 3, 3, 3), (320, 64), (128, 1280)]
VALUES: tuple[Any, ...] = (True, False, 0.0, 0.123, 1.5, 0, 2, 11, 10**6, (0.8, 0.7), (0.0, 0.7), (0.8, 0.7, 0.6), None)
CHOICES = [
    (name, option, value)
    for name, optimizer in INSTALLED.items()
    for option in option_names(optimizer.spec.config_type)
    for value in VALUES
    if not validated(optimizer.spec.config_type, {option: value})[1] and (option, value) != ("lr", 0)
]


def declared(optimizer: RegisteredOptimizer, config: Any, shape: tuple[int, ...]) -> float:
    state_bytes = optimizer.spec.state_bytes
    assert state_bytes is not None
    return state_bytes(config, shape) if callable(state_bytes) else state_bytes * math.prod(shape)


def storages(state: dict[str, Any]) -> dict[int, int]:
    """Address to bytes of all memory that a parameter's state holds."""
    held = [value.untyped_storage() for value in state.values() if isinstance(value, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def measured(optimizer: RegisteredOptimizer, config: Any) -> dict[tuple[int, ...], int]:
    """Bytes of a parameter's own state after a step, without tables that the optimizer's parameters share."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.rand(shape) + 0.1) for shape in SHAPES for _ in range(2)]
    built = build_optimizer(optimizer, parameters, config)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    built.step()
    held = [storages(built.state[parameter]) for parameter in parameters]
    owners = [address for addresses in held for address in addresses]
    own = [sum(size for address, size in addresses.items() if owners.count(address) == 1) for addresses in held]
    assert own[::2] == own[1::2]
    return dict(zip(SHAPES, own[::2], strict=True))


def test_all_optimizers_of_ours_declare_their_state() -> None:
    assert set(INSTALLED) >= OURS


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU", "ignore:decoupled_weight_decay makes")
@pytest.mark.parametrize(("name", "option", "value"), CHOICES)
def test_declared_state_is_what_a_step_makes(name, option, value) -> None:
    optimizer = INSTALLED[name]
    config = optimizer.spec.config_type(**{option: value})
    for shape, size in measured(optimizer, config).items():
        assert declared(optimizer, config, shape) == pytest.approx(size, rel=0.02), shape


@pytest.mark.parametrize("name", ["adamw8bit", "lion8bit"])
def test_what_parameters_share_is_a_few_kilobytes_per_optimizer(name) -> None:
    optimizer = INSTALLED[name]
    parameters = [torch.nn.Parameter(torch.rand(4096)) for _ in range(2)]
    built = build_optimizer(optimizer, parameters, optimizer.spec.config_type())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    built.step()
    first, second = (storages(built.state[parameter]) for parameter in parameters)
    assert 0 < sum(first[address] for address in first.keys() & second.keys()) <= 2048


def test_a_state_that_depends_on_options_is_declared_so() -> None:
    def size(name: str, **options: Any) -> float:
        spec = INSTALLED[name].spec
        return declared(INSTALLED[name], spec.config_type(**options), (1000, 1000)) / 1e6

    assert size("adamw", amsgrad=True) == pytest.approx(12, abs=0.01)
    assert size("prodigy") == 16
    assert size("prodigy", slice_p=11) == pytest.approx(8.73, abs=0.01)
    assert size("adamw8bit", min_8bit_size=10**7) == 8
    assert size("adamw8bit") == pytest.approx(2.03, abs=0.01)
