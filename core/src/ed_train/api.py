"""The library interface: optimizers of the installed plugins for a training loop of your own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
            will do. Parameters that do not require a gradient are passed on as they are.
        **options: the optimizer's options under the names of optimizer.json (``epsilon``, not ``eps``).

    Returns:
        The plain optimizer, with no wrapper around it.

    Raises:
        ConfigError: an unknown name, an unknown option or a value out of its range; lists every problem.
        PluginError: the plugin does not return an optimizer over exactly these parameters.

    Example:
        >>> optimizer = create_optimizer("prodigy", model.parameters(), weight_decay=0.01)
    """
    from ed_train.config.validate import validated

    registry: OptimizerRegistry = installed_plugins()
    registered = registry.find(name)
    config, problems, _ = validated(registered.spec.config_type, options, key_prefix=f"{registered.spec.name}.")
    if problems:
        raise ConfigError(problems)
    return build_optimizer(registered, _materialized(params), config)


def build_optimizer(registered: RegisteredOptimizer, params: Sequence[Any], config: Any) -> torch.optim.Optimizer:
    """Call the plugin and check what it returns.

    Raises:
        ConfigError: `params` is empty.
        PluginError: the plugin failed, returned something else, or dropped, added or duplicated parameters.
    """
    import torch

    spec = registered.spec
    if not params:
        raise ConfigError(f"{spec.name}: there are no parameters to optimize; is everything frozen?")
    try:
        optimizer = spec.build(params, config)
    except Exception as error:
        raise PluginError(f"{registered.origin}: {spec.name} could not be built: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PluginError(f"{registered.origin}: {spec.name} returned {type(optimizer).__name__}, not an Optimizer")
    given = sorted(map(id, _tensors(params)))
    if given != sorted(id(p) for group in optimizer.param_groups for p in group["params"]):
        raise PluginError(f"{registered.origin}: {spec.name} does not hold exactly the parameters that it was given")
    return optimizer


def _materialized(params: Iterable[Any]) -> list[Any]:
    """The same parameters or groups, where generators have become lists that can be read again."""
    return [
        {**p, "params": list(p["params"])} if isinstance(p, dict) and isinstance(p["params"], Iterator) else p
        for p in params
    ]


def _tensors(params: Sequence[Any]) -> list[Any]:
    """The bare parameters of any of the three forms that torch accepts."""
    import torch

    members: list[Any] = []
    for item in params:
        inside = item["params"] if isinstance(item, dict) else item
        members += [inside] if isinstance(inside, torch.Tensor | tuple) else inside
    return [p[1] if isinstance(p, tuple) else p for p in members]
