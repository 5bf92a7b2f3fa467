"""Optimizer state that lies beside a model: bare state dicts of other trainers, which say little about themselves.

What they are is found by comparing: a small optimizer like the component's takes a step, and shows what state it has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ed_train.api import build_optimizer
from ed_train.errors import CheckpointError
from ed_train.models.tensors import listed, non_finite
from ed_train.train.components import TrainedComponent
from ed_train.train.optimizer_state import (
    MisfitError,
    check_optimizer,
    check_parameters,
    load_state,
    renumbered,
    take_over,
)
from ed_train.train.state import OPTIMIZER_FILES, read_state

RUNTIME_KEYS = {"params", "initial_lr", "param_names"}
"""Keys of groups that are no options: schedules and names add the latter two."""
_TRIED_SHAPES = ((4,), (64, 64), (256, 256))
"""bitsandbytes keeps state in 8 bits from some size on."""


@dataclass(frozen=True)
class _Example:
    """What an optimizer holds after a step.

    Attributes:
        group: options, and whatever a step adds to them.
        keys: of a parameter's state, as they may occur.
        alike: those whose tensors have the parameter's shape.
    """

    group: Mapping[str, Any]
    keys: set[frozenset[str]]
    alike: set[str]


def load_foreign_state(component: TrainedComponent, folder: Path, manifest: Mapping[str, Any] | None) -> str:
    """Load the optimizer state that lies beside a model that a new run starts from, if it fits.

    Args:
        component: with a new optimizer.
        folder: the model's, perhaps with ``optimizer_unet.pt`` and ``optimizer_te.pt``: bare state dicts.
        manifest: of the folder, if it is a checkpoint of ours.

    Returns:
        A line that says what was loaded, or why nothing was; empty if there is nothing.

    Raises:
        ConfigError: the file wants to run foreign code.
    """
    path = folder / OPTIMIZER_FILES[component.name]
    if not os.path.lexists(path):
        return ""
    try:
        record = manifest["optimizers"].get(component.name) if manifest else None
        if manifest:
            check_optimizer(component, record)
        if record:
            check_parameters(component, record, changed=False)
        saved = _state_dict(path)
        names = record["parameters"] if record else _names(component, saved)
        state = renumbered(saved, names, component.parameter_names)
        _check(component, state)
        options = component.optimizer.param_groups[0].copy()
        load_state(component, state)
        take_over(component, options, old=None)
    except (MisfitError, CheckpointError) as error:
        return f"{component.name}: {path} is not used, its optimizer begins anew: {error}"
    loaded, wanted = len(state["state"]), len(component.parameters)
    count = f"{loaded}" if loaded == wanted else f"{loaded} of {wanted}"
    return f"{component.name}: optimizer state of {count} tensors loaded from {path}"


def _state_dict(path: Path) -> dict[str, Any]:
    """Read a file that has to hold a state dict as torch's optimizers have it. Raises MisfitError if it does not."""
    if not path.is_file():
        raise MisfitError("it is no file")
    saved = read_state(path)
    groups, state = (saved.get("param_groups"), saved.get("state")) if isinstance(saved, dict) else (None, None)
    if not isinstance(groups, list) or not groups or not isinstance(state, dict):
        raise MisfitError("it holds no state dict of an optimizer")
    lists = [group.get("params") if isinstance(group, dict) else None for group in groups]
    numbers = [number for one in lists if isinstance(one, list) for number in one]
    sound = all(isinstance(one, list) for one in lists) and all(type(number) is int for number in numbers)
    if not sound or len(set(numbers)) != len(numbers) or not all(isinstance(s, dict) for s in state.values()):
        raise MisfitError("it holds no state dict of an optimizer: parameters are numbers, each with a state")
    if unknown := [str(number) for number in state if number not in numbers]:
        raise MisfitError(f"it has state of parameters that are in none of its groups: {listed(unknown)}")
    return dict(saved)


def _names(component: TrainedComponent, saved: Mapping[str, Any]) -> Sequence[str]:
    """The names of the parameters: those in the file, if it was saved with names, else in the order of the module."""
    names = saved["param_groups"][0].get("param_names")
    if names is None:
        return component.parameter_names
    known = isinstance(names, list) and all(isinstance(n, str) for n in names)
    if not known or sorted(names) != sorted(component.parameter_names):
        raise MisfitError("it names other parameters than those that train")
    return [str(name) for name in names]


def _check(component: TrainedComponent, saved: Mapping[str, Any]) -> None:
    """See that a state dict can be this optimizer's, of these parameters, and that no number in it is NaN."""
    example, group = _example(component), saved["param_groups"][0]
    name = component.config.optimizer.spec.name
    if unknown := sorted(str(key) for key in group.keys() - example.group.keys() - RUNTIME_KEYS):
        raise MisfitError(f"it is not the state of {name}, which has no {listed(unknown, 5)}")
    decoupled = "decoupled_weight_decay"  # all that tells torch's Adam from its AdamW
    if decoupled in group and group[decoupled] != example.group[decoupled]:
        raise MisfitError(f"it is not the state of {name}: its {decoupled} is {group[decoupled]}")
    if bad := [str(key) for key, value in group.items() if isinstance(value, float) and value != value]:
        raise MisfitError(f"{listed(bad)} of its group is NaN")
    for index, state in saved["state"].items():
        if state:
            _check_state(component, index, _flat(state), example)


def _check_state(component: TrainedComponent, index: int, state: Mapping[str, Any], example: _Example) -> None:
    parameter, where = component.parameters[index], f"parameter {index} ({component.parameter_names[index]})"
    if frozenset(state) not in example.keys:
        name, found = component.config.optimizer.spec.name, listed(sorted(map(str, state)), 5)
        raise MisfitError(f"it is not the state of {name}: for {where} it has {found}")
    for key in example.alike & state.keys():
        value = state[key]
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
            raise MisfitError(f"{key} of {where} is no tensor of numbers")
        if value.shape != parameter.shape:
            shapes = f"{list(value.shape)}, and that parameter is {list(parameter.shape)}"
            raise MisfitError(f"{key} of {where} is {shapes}: other parameters, or another order")
    if bad := non_finite({key: value for key, value in state.items() if isinstance(value, Tensor)}):
        raise MisfitError(f"{listed(bad)} of {where} is not finite")


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter, without the level of its own that bitsandbytes has for what belongs to its 8 bits."""
    inner = {k: v for value in state.values() if isinstance(value, dict) for k, v in value.items()}
    return {k: v for k, v in state.items() if not isinstance(v, dict)} | inner


def _example(component: TrainedComponent) -> _Example:
    """What the component's optimizer, as it is configured, holds after a step over some small parameters."""
    device = component.parameters[0].device
    parameters = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in _TRIED_SHAPES]
    optimizer: Any = build_optimizer(component.config.optimizer, parameters, component.config.options)
    if component.config.optimizer.spec.schedule_free:
        optimizer.train()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except Exception as error:
        raise MisfitError(f"what state its optimizer has cannot be told: {' '.join(str(error).split())}") from error
    states = [_flat(state) for state in optimizer.state_dict()["state"].values()]
    shapes = {
        key: [getattr(state.get(key), "shape", None) == p.shape for state, p in zip(states, parameters, strict=True)]
        for state in states
        for key in state
    }
    alike = {key for key, same in shapes.items() if all(same)}
    return _Example(dict(optimizer.param_groups[0]), {frozenset(state) for state in states}, alike)
