"""Check what a training loop hands over to be optimized: parameters, named parameters or parameter groups."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ed_train.config.describe import annotations_of, leaf_types
from ed_train.config.validate import validated
from ed_train.errors import ConfigError, Problem
from ed_train.specs import OptimizerSpec

if TYPE_CHECKING:
    import torch

FORMS = "an iterable of parameters, of (name, parameter) pairs or of groups"


def checked_parameters(name: str, params: Any) -> list[Any]:
    """The same parameters, pairs or groups in a list that can be read again; the groups are copies.

    Args:
        name: the optimizer's, for messages.
        params: whatever the caller gave.

    Raises:
        ConfigError: they have none of the three forms, are no leaves of the graph, or come twice.
    """
    import torch

    if isinstance(params, torch.nn.Module):
        raise ConfigError(f"{name}: params: got a module, {_kind(params)}; expected {FORMS}: pass its .parameters()")
    copies = [_copied(name, index, item) for index, item in enumerate(_listed(name, "params", params))]
    if not copies and isinstance(params, Iterator):
        raise ConfigError(f"{name}: params: an iterator with nothing left in it; was it read before? Make a new one")
    _check_one_form(name, copies)
    tensors = tensors_of(copies)
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, torch.Tensor):
            raise ConfigError(f"{name}: params: number {index} is {_kind(tensor)}; expected {FORMS}")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise ConfigError(f"{name}: params: number {index} is of {tensor.dtype}, which has no gradient")
        if not tensor.is_leaf:
            raise ConfigError(f"{name}: params: number {index} is computed from other tensors; expected a parameter")
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise ConfigError(f"{name}: params: a parameter is given twice; give each of them once")
    return copies


def _check_one_form(name: str, copies: Sequence[Any]) -> None:
    """Refuse lists in which the three forms are mixed, also within a group."""
    lists = [("params", copies)]
    lists += [(f"params[{i}]['params']", item["params"]) for i, item in enumerate(copies) if isinstance(item, dict)]
    for where, items in lists:
        forms = {_form(item): index for index, item in enumerate(items)}
        if len(forms) > 1:
            numbers = " and ".join(map(str, sorted(forms.values())))
            raise ConfigError(f"{name}: {where}: numbers {numbers} have different forms; expected {FORMS}, all alike")


def _form(item: Any) -> type[Any]:
    return next((form for form in (tuple, dict) if isinstance(item, form)), object)


def tensors_of(params: Sequence[Any]) -> list[Any]:
    """The bare parameters of any of the three forms that torch accepts."""
    members = [p for item in params for p in (item["params"] if isinstance(item, dict) else [item])]
    return [p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in members]


@contextmanager
def narrowed(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[torch.Tensor],
    stand_ins: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> Generator[None]:
    """A block in which an optimizer holds these of its parameters alone, each in its own group.

    A step in it is as good as its share of a step over all, if the spec says `per_parameter`.

    Args:
        optimizer: afterwards it holds all of its parameters again.
        parameters: some of them.
        stand_ins: for some of those, another tensor that is in its place meanwhile, with its state.
    """
    held = {id(parameter): parameter for parameter in parameters} | {id(p): other for p, other in stand_ins}
    whole = [group["params"] for group in optimizer.param_groups]
    for group, members in zip(optimizer.param_groups, whole, strict=True):
        group["params"] = [held[id(parameter)] for parameter in members if id(parameter) in held]
    _move_state(optimizer, stand_ins)
    try:
        yield
    finally:
        for group, members in zip(optimizer.param_groups, whole, strict=True):
            group["params"] = members
        _move_state(optimizer, [(other, parameter) for parameter, other in stand_ins])


def _move_state(optimizer: torch.optim.Optimizer, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for before, after in pairs:
        if before in optimizer.state:
            optimizer.state[after] = optimizer.state.pop(before)


def check_group_options(spec: OptimizerSpec, config: Any, params: Sequence[Any], defaults: Mapping[str, Any]) -> None:
    """Check the options in parameter groups, which go under the library's names and past the plugin.

    Args:
        spec: the optimizer.
        config: the options that the groups' own ones go over.
        params: what it was built over.
        defaults: the built optimizer's; torch gives every group those that it lacks.

    Raises:
        ConfigError: a value out of its range, or a name that is probably meant to be another one. A name that is far
            from any option is the caller's own business, as with any torch optimizer.
    """
    # Where null is allowed it is ours: the library has another word for it.
    options = {name for name, a in annotations_of(spec.config_type).items() if type(None) not in leaf_types(a)}
    problems: list[Problem] = []
    for index, group in enumerate(params):
        given = dict(group) if isinstance(group, dict) else {}
        own = {k: v for k, v in given.items() if k in options and k in defaults}
        found = validated(spec.config_type, {**vars(config), **own})[1] if own else []
        for key in [k for k in given if k not in defaults and k != "params"]:
            close = get_close_matches(str(key), defaults, n=1, cutoff=0.75)
            if close or key in options:
                known = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(defaults)}"
                found.append(Problem("", str(key), f"{spec.name} has no such option in a group; {known}"))
        problems += [replace(problem, where=f"params[{index}]") for problem in found]
    if problems:
        raise ConfigError(problems)


def _copied(name: str, index: int, item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    if "params" not in item:
        keys = ", ".join(map(repr, item))
        raise ConfigError(f"{name}: params[{index}]: a group without the key 'params'; its keys are {keys or 'none'}")
    return {**item, "params": _listed(name, f"params[{index}]['params']", item["params"], bare=True)}


def _listed(name: str, where: str, params: Any, *, bare: bool = False) -> list[Any]:
    """A list of what was given; a `bare` tensor counts as a list of one."""
    import torch

    if isinstance(params, torch.Tensor) and bare:
        return [params]
    if isinstance(params, torch.Tensor | Mapping | Set | str) or not isinstance(params, Iterable):
        raise ConfigError(f"{name}: {where}: got {_kind(params)}; expected {FORMS}, in an order")
    return list(params)


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
