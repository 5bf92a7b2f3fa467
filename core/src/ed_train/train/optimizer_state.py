"""Put a saved optimizer state back: by parameter name, never another optimizer's, and with the options set now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ed_train.api import build_optimizer
from ed_train.config.describe import show
from ed_train.config.run import TEXT_ENCODER
from ed_train.errors import CheckpointError, ConfigError, Problem
from ed_train.models.tensors import listed
from ed_train.train.components import TrainedComponent
from ed_train.train.rounding import load_in_float32
from ed_train.train.state import OPTIMIZER_FILES, read_state

ALLOW = "resume_changed true goes on all the same, and what does not fit begins anew"


class MisfitError(Exception):
    """A state that belongs to something else; the message says to what."""


def optimizer_record(component: TrainedComponent) -> dict[str, Any]:
    """What a checkpoint says about a component's optimizer state, in JSON values."""
    optimizer = component.config.optimizer
    return {
        "optimizer": optimizer.spec.name,
        "distribution": optimizer.distribution,
        "version": optimizer.version,
        "parameters": component.parameter_names,
        "shapes": [list(p.shape) for p in component.parameters],
    }


def restore_optimizer(
    component: TrainedComponent, checkpoint: Path, manifest: Mapping[str, Any], *, changed: bool, load: bool = True
) -> list[str]:
    """Load the state that a checkpoint of ours has for a component.

    Args:
        component: with a new optimizer.
        checkpoint: its folder.
        manifest: of it.
        changed: go on where optimizer or trained parameters are others than the checkpoint's.
        load: False to compare with what the manifest says of the state, and to leave the state itself alone.

    Returns:
        Lines about what is not as it was.

    Raises:
        ConfigError: the state is another optimizer's or of other parameters, and `changed` is off.
        CheckpointError: the state cannot be read.
    """
    record = manifest["optimizers"].get(component.name)
    notes: list[str] = []
    try:
        _check_optimizer(component, record)
        if record["version"] != component.config.optimizer.version:
            origin = component.config.optimizer.origin
            saved_by = f"{record['distribution']} {record['version']}"
            notes.append(f"{component.name}: the state was saved by {saved_by}; {origin} goes on with it")
        notes += _check_parameters(component, record, changed=changed)
        if not load:
            return notes
        saved = read_state(checkpoint / OPTIMIZER_FILES[component.name])
        _load(component, _renumbered(saved, record["parameters"], component.parameter_names))
        recorded = manifest["run"]["optimizer"]
        own = recorded.get("text_encoder_overrides") if component.name == TEXT_ENCODER else None
        _reapply_options(component, own or recorded["base"])
    except MisfitError as error:
        if not changed:
            raise ConfigError([Problem("", "resume", f"{component.name}: {error}; {ALLOW}")]) from error
        notes.append(f"{component.name}: {error}; its optimizer begins anew")
    return notes


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
    if not path.is_file():
        return ""
    try:
        record = manifest["optimizers"].get(component.name) if manifest else None
        if manifest:
            _check_optimizer(component, record)
        if record:
            _check_parameters(component, record, changed=False)
        names = record["parameters"] if record else component.parameter_names
        saved = read_state(path)
        _check_bare(component, saved)
        options = {k: v for k, v in component.optimizer.param_groups[0].items() if k != "params"}
        _load(component, _renumbered(saved, names, component.parameter_names))
        _take_over(component, options, old=None)
    except (MisfitError, CheckpointError) as error:
        return f"{component.name}: {path} is not used, its optimizer begins anew: {error}"
    return f"{component.name}: optimizer state of {len(saved['state'])} tensors loaded from {path}"


def _check_optimizer(component: TrainedComponent, record: Mapping[str, Any] | None) -> None:
    optimizer = component.config.optimizer
    if record is None:
        raise MisfitError("the checkpoint has no optimizer state for it: it did not train")
    if (record["optimizer"], record["distribution"]) != (optimizer.spec.name, optimizer.distribution):
        found = f"{record['optimizer']} of {record['distribution']}"
        raise MisfitError(
            f"the state is that of {found}, and this run uses {optimizer.spec.name} of {optimizer.distribution}"
        )


def _check_parameters(component: TrainedComponent, record: Mapping[str, Any], *, changed: bool) -> list[str]:
    """Compare the trained parameters by name and shape; returns lines about those that differ, if they may."""
    shapes = dict(zip(record["parameters"], map(tuple, record["shapes"]), strict=True))
    now = {name: tuple(p.shape) for name, p in component.named_parameters()}
    if wrong := [name for name in now if name in shapes and shapes[name] != now[name]]:
        raise MisfitError(f"parameters have another shape than the state's: {listed(wrong)}")
    new, gone = [n for n in now if n not in shapes], [n for n in shapes if n not in now]
    if not new and not gone:
        return []
    parts = [f"{len(new)} parameters train that did not ({listed(new)})"] if new else []
    parts += [f"{len(gone)} parameters that did train are frozen now ({listed(gone)})"] if gone else []
    if not changed:
        raise MisfitError(" and ".join(parts))
    return [f"{component.name}: {' and '.join(parts)}; state is kept by name, and new parameters begin without"]


def _renumbered(saved: Any, names: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """The state dict with its parameters in the order of `wanted`."""
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    if not groups or not isinstance(saved.get("state"), dict):
        raise MisfitError("it holds no state dict of an optimizer")
    numbers = [n for group in groups for n in group["params"]]
    if len(groups) != 1 or len(numbers) != len(names):
        raise MisfitError(
            f"it has {len(numbers)} parameters in {len(groups)} groups, and {len(names)} in one are expected"
        )
    number_of = dict(zip(names, numbers, strict=True))
    kept = [(index, number_of[name]) for index, name in enumerate(wanted) if name in number_of]
    state = {index: saved["state"][number] for index, number in kept if number in saved["state"]}
    extra = {k: v for k, v in saved.items() if k not in ("state", "param_groups")}
    return {**extra, "state": state, "param_groups": [{**groups[0], "params": list(range(len(wanted)))}]}


def _check_bare(component: TrainedComponent, saved: Any) -> None:
    """Whether a state dict without a name can be this optimizer's: by its groups' keys and its tensors' shapes."""
    if not isinstance(saved, dict) or not saved.get("param_groups") or not isinstance(saved.get("state"), dict):
        raise MisfitError("it holds no state dict of an optimizer")
    runtime = {"params", "initial_lr", "param_names"}  # schedules and names add the latter two
    keys = set(saved["param_groups"][0]) - runtime
    own = set(component.optimizer.param_groups[0]) - runtime
    if keys != own:
        name = component.config.optimizer.spec.name
        differing = listed(sorted(map(str, keys ^ own)), 5)
        raise MisfitError(f"it is not the state of {name}: the options of the groups differ in {differing}")
    numbers = [n for group in saved["param_groups"] for n in group["params"]]
    for number, parameter in zip(numbers, component.parameters, strict=False):
        for key, value in saved["state"].get(number, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape != parameter.shape:
                shapes = f"{list(value.shape)}, and that parameter is {list(parameter.shape)}"
                raise MisfitError(f"{key} of parameter {number} is {shapes}: other parameters, or another order")


def _load(component: TrainedComponent, state: dict[str, Any]) -> None:
    try:
        load_in_float32(component.optimizer, component.parameters, state)
    except Exception as error:
        raise MisfitError(f"its optimizer refuses the state: {' '.join(str(error).split())[:200]}") from error


def _reapply_options(component: TrainedComponent, recorded: Mapping[str, Any]) -> None:
    """Let options that were changed since the checkpoint count; `load_state_dict` has brought back the old ones."""
    config = component.config
    fields = vars(config.options)
    before = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items() if k in fields}
    if all(before.get(key) == value for key, value in fields.items()):
        return
    try:
        options = type(config.options)(**before)
    except (TypeError, ValueError) as error:
        raise MisfitError(f"the checkpoint's options {show(before)} are not valid any more: {error}") from error
    old = build_optimizer(config.optimizer, component.parameters, options).param_groups[0]
    new = build_optimizer(config.optimizer, component.parameters, config.options).param_groups[0]
    _take_over(component, new, old=old)


def _take_over(component: TrainedComponent, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> None:
    """Put the options of a new group over the loaded one's, but not over what training has changed, such as d.

    Args:
        component: its optimizer has loaded the state.
        new: the group of an optimizer that was just built as configured.
        old: the same with the checkpoint's options; None if they are not known: only those that the spec names count.
    """
    named = {*vars(component.config.options), "eps"}
    for group in component.optimizer.param_groups:
        for key, value in new.items():
            if key == "params":
                continue
            untrained = old is not None and old[key] != value and group.get(key) == old[key]
            if untrained or (old is None and key in named):
                group[key] = value
