"""Any installed optimizer class as an optimizer without a plugin: ``"optimizer": "torch.optim:NAdam"``.

Its options are those of its constructor, under the constructor's own names, with types as far as defaults and
annotations tell. There are no ranges, no help and no traits: such an optimizer is `unverified`, and a plugin is better.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import field, make_dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from typing import Annotated, Any, get_type_hints

from ed_train.config.describe import leaf_types
from ed_train.errors import ConfigError
from ed_train.specs import Help, NonNegative, OptimizerSpec, Params

_HELP = Help("an argument of the class's constructor")
_NEEDED_HELP = Help("an argument of the class's constructor that has no default: set it")
_REQUIRED = inspect.Parameter.empty
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@lru_cache(maxsize=64)  # one config type for each, so that its checker is built once
def optimizer_of_class(name: str) -> tuple[OptimizerSpec, str, str]:
    """Make a spec of ``module:Class``; imports the module, and torch.

    Returns:
        The spec, and the distribution and version that the module belongs to.

    Raises:
        ConfigError: no such module or class, or the class is no subclass of `torch.optim.Optimizer` with an lr.
    """
    module_name, _, class_name = name.strip().partition(":")
    cls = _optimizer_class(module_name, class_name)
    check_step(repr(name), cls)
    parameters = _options(cls)
    if "lr" not in parameters:
        raise ConfigError(f"{name}: its constructor has no argument lr, which ed-train's schedules need")
    defaults = {option: p.default for option, p in parameters.items()}

    def build(params: Params, config: Any) -> Any:
        # What is as the class has it is left to the class, so that nothing is lost on the way through JSON's types.
        return cls(params, **{key: value for key, value in vars(config).items() if value is not defaults[key]})

    spec = OptimizerSpec(
        name=name.strip(),
        summary=f"{class_name} of {module_name} (unverified: there is no plugin for it)",
        config_type=_config_type(class_name, cls, parameters),
        build=build,
        schedule_free=all(callable(getattr(cls, method, None)) for method in ("train", "eval")),
    )
    return spec, *_distribution(module_name)


def _optimizer_class(module_name: str, class_name: str) -> Any:
    import torch

    name = f"{module_name}:{class_name}"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints must not get into the output of --json
            module = import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            reason = f"{error}; is the package that has it installed?"
        message = f"{name!r}: the module {module_name} cannot be imported: {' '.join(reason.split())}"
        raise ConfigError(message) from error
    found = getattr(module, class_name, None)
    optimizers = [n for n, value in vars(module).items() if _is_optimizer(value) and value is not torch.optim.Optimizer]
    if not _is_optimizer(found) or found is torch.optim.Optimizer:
        what = "is no subclass of torch.optim.Optimizer" if found is not None else "does not exist"
        same = [optimizer for optimizer in optimizers if optimizer.lower() == class_name.lower()]
        close = same or get_close_matches(class_name, optimizers, n=1)
        known = f"did you mean {close[0]}?" if close else f"optimizers there: {', '.join(optimizers) or 'none'}"
        raise ConfigError(f"{name!r}: {class_name} {what}; {known}")
    return found


def check_step(name: str, cls: Any) -> None:
    """Refuse a class whose ``step`` cannot be called without arguments, such as LBFGS, whose step needs a closure.

    Raises:
        ConfigError: its step needs arguments.
    """
    _, *arguments = inspect.signature(cls.step).parameters.values()
    if needed := [a.name for a in arguments if a.default is _REQUIRED and a.kind in _KINDS]:
        raise ConfigError(f"{name}: its step() needs {' and '.join(needed)}, which this trainer does not give")


def _is_optimizer(value: Any) -> bool:
    import torch

    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


def _options(cls: Any) -> dict[str, inspect.Parameter]:
    """The constructor's arguments that JSON can express, without the first, which takes the parameters."""
    _, *parameters = inspect.signature(cls).parameters.values()
    return {p.name: p for p in parameters if p.kind in _KINDS and _is_plain(p.default)}


def _is_plain(default: Any) -> bool:
    if isinstance(default, tuple | list):
        return all(map(_is_plain, default))
    return default is _REQUIRED or default is None or isinstance(default, bool | int | float | str)


def _config_type(class_name: str, cls: Any, parameters: dict[str, inspect.Parameter]) -> type[Any]:
    try:
        hints = get_type_hints(cls.__init__)
    except Exception:  # a name that exists only for type checkers
        hints = {}
    fields: list[Any] = []
    unset = {"lr": (_REQUIRED, None)}  # an lr of None, as Adafactor has, leaves it to the class
    required = [name for name, p in parameters.items() if p.default in unset.get(name, (_REQUIRED,))]
    for name, parameter in parameters.items():
        default = None if parameter.default is _REQUIRED else parameter.default
        annotation = _lr_type(default) if name == "lr" else _type(default, hints.get(name))
        make: Callable[[], Any] = (lambda value: lambda: value)(default)
        help_ = _NEEDED_HELP if name in required else _HELP
        fields.append((name, Annotated[annotation, help_], field(default_factory=make)))

    def check(config: Any) -> None:
        missing = [name for name in required if getattr(config, name) is None]
        if missing:
            raise ValueError(f"{class_name} needs {' and '.join(missing)}; set {'it' if len(missing) == 1 else 'them'}")

    return make_dataclass(f"{class_name}Options", fields, frozen=True, namespace={"__post_init__": check})


def _lr_type(default: Any) -> Any:
    return NonNegative if isinstance(default, int | float) else NonNegative | None


def _type(default: Any, hint: Any) -> Any:
    """The type of an option: from its default, else from its annotation, else anything."""
    if isinstance(default, bool | str):
        return type(default)
    if isinstance(default, int | float):
        return int if hint is int else int | float  # old constructors write weight_decay=0
    if isinstance(default, tuple | list) and default:
        return tuple[tuple(_type(member, None) for member in default)]  # type: ignore[misc]  # made at run time
    if default is None and hint is not None:
        leaves = [t for t in (bool, int, float, str) if t in leaf_types(hint)]
        if leaves:
            found: Any = leaves[0]
            for leaf in leaves[1:]:
                found = found | leaf
            return found | None
    return Any


def _distribution(module_name: str) -> tuple[str, str]:
    from importlib.metadata import packages_distributions, version

    names = packages_distributions().get(module_name.partition(".")[0], [])
    return (names[0], version(names[0])) if names else (module_name, "(no distribution)")
