"""Put a saved optimizer state back: by parameter name, never another optimizer's, and with the options set now."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ed_train.api import build_optimizer
from ed_train.config.describe import show
from ed_train.config.run import TEXT_ENCODER
from ed_train.errors import ConfigError, Problem
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
    new = component.optimizer.state_dict()
    try:
        check_optimizer(component, record)
        if record["version"] != component.config.optimizer.version:
            origin = component.config.optimizer.origin
            saved_by = f"{record['distribution']} {record['version']}"
            notes.append(f"{component.name}: the state was saved by {saved_by}; {origin} goes on with it")
        notes += check_parameters(component, record, changed=changed)
        if not load:
            return notes
        saved = read_state(checkpoint / OPTIMIZER_FILES[component.name])
        load_state(component, renumbered(saved, record["parameters"], component.parameter_names))
        recorded = manifest["run"]["optimizer"]
        own = recorded.get("text_encoder_overrides") if component.name == TEXT_ENCODER else None
        _reapply_options(component, own or recorded["base"])
    except MisfitError as error:
        if not changed:
            raise ConfigError([Problem("", "resume", f"{component.name}: {error}; {ALLOW}")]) from error
        component.optimizer.load_state_dict(new)  # it may have been found out too late
        notes.append(f"{component.name}: {error}; its optimizer begins anew")
    return notes


def check_optimizer(component: TrainedComponent, record: Mapping[str, Any] | None) -> None:
    optimizer = component.config.optimizer
    if record is None:
        raise MisfitError("the checkpoint has no optimizer state for it: it did not train")
    if (record["optimizer"], record["distribution"]) != (optimizer.spec.name, optimizer.distribution):
        found = f"{record['optimizer']} of {record['distribution']}"
        raise MisfitError(
            f"the state is that of {found}, and this run uses {optimizer.spec.name} of {optimizer.distribution}"
        )


def check_parameters(component: TrainedComponent, record: Mapping[str, Any], *, changed: bool) -> list[str]:
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


def renumbered(saved: Any, names: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """The state dict with its parameters in the order of `wanted`; what is no parameter's stays as it is."""
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
    of_none = {key: value for key, value in saved["state"].items() if not isinstance(key, int)}
    state = of_none | {index: saved["state"][number] for index, number in kept if number in saved["state"]}
    extra = {k: v for k, v in saved.items() if k not in ("state", "param_groups")}
    group = {k: v for k, v in groups[0].items() if k != "param_names"}
    return {**extra, "state": state, "param_groups": [{**group, "params": list(range(len(wanted)))}]}


def load_state(component: TrainedComponent, state: dict[str, Any]) -> None:
    try:
        load_in_float32(component.optimizer, component.parameters, state)
    except Exception as error:
        raise MisfitError(f"its optimizer refuses the state: {' '.join(str(error).split())[:200]}") from error


def _reapply_options(component: TrainedComponent, recorded: Mapping[str, Any]) -> None:
    """Let options that were changed since the checkpoint count; `load_state_dict` has brought back the old ones."""
    config = component.config
    fields = vars(config.options)
    before = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items() if k in fields}
    changed = [
        f"{key} {show(before.get(key))} -> {show(value)}" for key, value in fields.items() if before.get(key) != value
    ]
    if not changed:
        return
    try:
        options = type(config.options)(**before)
    except (TypeError, ValueError) as error:
        raise MisfitError(f"the checkpoint's options {show(before)} are not valid any more: {error}") from error
    old = build_optimizer(config.optimizer, component.parameters, options).param_groups[0]
    new = build_optimizer(config.optimizer, component.parameters, config.options).param_groups[0]
    take_over(component, new, old=old)
    _try_step(component, changed)


def _try_step(component: TrainedComponent, changed: list[str]) -> None:
    """See that the optimizer can go on with the loaded state: step copies of a few small parameters.

    Some options decide what state there is, such as amsgrad or slice_p.

    Args:
        component: its optimizer has loaded the state and has the options set now.
        changed: what is set otherwise than when the state was saved.

    Raises:
        MisfitError: it cannot.
    """
    optimizer, config = component.optimizer, component.config
    by_size = sorted((p for p in component.parameters if optimizer.state.get(p)), key=torch.numel, reverse=True)
    chosen = list({p.dim(): p for p in by_size}.values())  # the smallest of each number of dimensions
    if not chosen:
        return
    copies = [torch.nn.Parameter(p.detach().float().clone()) for p in chosen]
    for parameter in copies:
        parameter.grad = torch.ones_like(parameter)
    try:
        trial: Any = build_optimizer(config.optimizer, copies, config.options)
        group = {**optimizer.param_groups[0], "params": list(range(len(copies)))}
        states = [copy.deepcopy(optimizer.state[p]) for p in chosen]
        trial.load_state_dict({"state": dict(enumerate(states)), "param_groups": [group]})
        if config.optimizer.spec.schedule_free:
            trial.train()
        trial.step()
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise MisfitError(f"its state does not go with changed options ({listed(changed)}): {reason}") from error


def take_over(component: TrainedComponent, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> None:
    """Put the options of a new group over the loaded one's, but not over what training has changed, such as d.

    Args:
        component: its optimizer has loaded the state.
        new: the group of an optimizer that was just built as configured.
        old: the same with the checkpoint's options; None if they are not known: those count that the spec names,
            and switches such as torch's maximize and fused.
    """
    named = {*vars(component.config.options), "eps"}
    for group in component.optimizer.param_groups:
        for key, value in new.items():
            if key == "params":
                continue
            if old is None:
                switch = isinstance(value, bool | None) and key != "train_mode"  # schedule-free's, which is state
                configured = key in named or key not in group or switch
            else:
                configured = old[key] != value and group.get(key) == old[key]
            if configured:
                group[key] = value
