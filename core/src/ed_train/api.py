"""The library interface: optimizers of the installed plugins for a training loop of your own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ed_train.errors import ConfigError, PluginError
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer, load_registry

if TYPE_CHECKING:
    import torch

installed_plugins = lru_cache(maxsize=1)(load_registry)


def list_optimizers() -> list[str]:
    """Return the names that `create_optimizer` accepts, sorted."""
    return installed_plugins().names


def create_optimizer(name: str, params: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """Build an optimizer of an installed plugin with its family's defaults.

    Args:
        name: one of `list_optimizers`, or ``distribution:name`` where two plugins offer one name.
        params: parameters, parameter groups, or ``(name, parameter)`` pairs, as for any torch optimizer; a generator
            will do. Parameters that do not require a gradient are passed on as they are. Options in a group have the
            names of the library (``eps``).
        **options: the optimizer's options under the names of optimizer.json (``epsilon``, not ``eps``).

    Returns:
        The plain optimizer, with no wrapper around it.

    Raises:
        ConfigError: an unknown name, an unknown option or a value out of its range, also in a group; lists every
            problem. Or `params` is none of these, or empty.
        PluginError: the plugin does not return an optimizer over exactly these parameters.

    Example:
        >>> optimizer = create_optimizer("prodigy", model.parameters(), weight_decay=0.01)
    """
    from ed_train.config.validate import validated
    from ed_train.parameters import check_group_options, checked_parameters

    registry: OptimizerRegistry = installed_plugins()
    registered = registry.find(name)
    config, problems, notes = validated(registered.spec.config_type, options, key_prefix=f"{registered.spec.name}.")
    if problems:
        raise ConfigError(problems)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    checked = checked_parameters(registered.spec.name, params)
    optimizer = build_optimizer(registered, checked, config)
    check_group_options(registered.spec, config, checked, optimizer.defaults)
    return optimizer


def effective_lr(name: str, group: Mapping[str, Any]) -> float:
    """The step size that an optimizer really uses: d times lr for one that finds its learning rate itself.

    Args:
        name: as for `create_optimizer`.
        group: one of the optimizer's param_groups.

    Raises:
        ConfigError: an unknown name.
    """
    spec = installed_plugins().find(name).spec
    return float(spec.effective_lr(group) if spec.effective_lr else group["lr"])


def build_optimizer(registered: RegisteredOptimizer, params: Sequence[Any], config: Any) -> torch.optim.Optimizer:
    """Call the plugin and check what it returns.

    Raises:
        ConfigError: `params` is empty.
        PluginError: the plugin failed, returned something else, or dropped, added or duplicated parameters.
    """
    import torch

    from ed_train.class_optimizer import check_step
    from ed_train.parameters import tensors_of

    spec = registered.spec
    given = tensors_of(params)
    if not given:
        raise ConfigError(f"{spec.name}: there are no parameters to optimize; is everything frozen?")
    try:
        optimizer = spec.build(params, copy.copy(config))  # what build does to vars(config) stays there
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{registered.origin}: {spec.name} could not be built: {' '.join(str(error).split()) or repr(error)}"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PluginError(f"{registered.origin}: {spec.name} returned {type(optimizer).__name__}, not an Optimizer")
    if sorted(map(id, given)) != sorted(id(p) for group in optimizer.param_groups for p in group["params"]):
        raise PluginError(f"{registered.origin}: {spec.name} does not hold exactly the parameters that it was given")
    try:
        check_step(f"{registered.origin}: {spec.name}", type(optimizer))
    except ConfigError as error:
        raise PluginError(str(error)) from error
    if not all("lr" in group for group in optimizer.param_groups):
        raise PluginError(f"{registered.origin}: {spec.name} has no 'lr' in its parameter groups, which schedules set")
    return optimizer
