"""Find the installed plugins and hold what they offer.

Entry points are loaded one by one and each is registered with a plugin manager of its own, because pluggy's loader
stops at the first plugin that fails to import. A plugin that is broken is recorded, never raised, until someone asks
for its optimizer.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pluggy

from ed_train import hookspecs
from ed_train.entry_points import EntryPoint, find_entry_points, normalized
from ed_train.errors import ConfigError, PluginError
from ed_train.first_party import DISTRIBUTION_OF_OPTIMIZER
from ed_train.specs import FreezePolicy, OptimizerSpec


@dataclass(frozen=True)
class RegisteredOptimizer:
    """An optimizer and the distribution that it came from."""

    spec: OptimizerSpec
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class RegisteredFreezePolicy:
    """A freeze policy and the distribution that it came from."""

    policy: FreezePolicy
    distribution: str
    version: str


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that is installed and cannot be used, and why, in one line."""

    entry_point: str
    distribution: str
    version: str
    error: str


@dataclass(frozen=True)
class OptimizerRegistry:
    """What the installed plugins offer; read-only and sorted, so that the order of plugins never matters."""

    optimizers: tuple[RegisteredOptimizer, ...] = ()
    freeze_policies: tuple[RegisteredFreezePolicy, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()

    def __iter__(self) -> Iterator[RegisteredOptimizer]:
        return iter(self.optimizers)

    @property
    def names(self) -> list[str]:
        return sorted({o.spec.name for o in self.optimizers})

    def find(self, name: str) -> RegisteredOptimizer:
        """Return the optimizer called `name` (any case) or ``distribution:name``.

        Raises:
            ConfigError: nobody offers it (the message says what to install or suggests a name), or several do.
        """
        distribution, _, short = name.strip().lower().rpartition(":")
        distribution = normalized(distribution)
        found = [o for o in self.optimizers if o.spec.name == short and distribution in ("", o.distribution)]
        if len(found) == 1:
            return found[0]
        raise ConfigError(self._not_found(name, distribution, short) if not found else _ambiguous(name, found))

    def _not_found(self, name: str, distribution: str, short: str) -> str:
        owner = distribution or DISTRIBUTION_OF_OPTIMIZER.get(short, "")
        for plugin in self.broken:
            if plugin.distribution == owner:
                return f"{name!r} is in {owner} {plugin.version}, which is installed but broken: {plugin.error}"
        if owner == DISTRIBUTION_OF_OPTIMIZER.get(short):
            message = f"{name!r} needs the distribution {owner}, which is not installed: pip install {owner}"
            if owner in {o.distribution for o in self.optimizers}:
                message = f"{name!r} needs a newer {owner}: pip install --upgrade {owner}"
        else:
            message = f"no installed optimizer is called {name!r}" + self._suggestion(short)
        message += f" (installed: {', '.join(self.names) or 'none'})"
        if self.broken:
            message += f" (broken: {'; '.join(f'{p.distribution}: {p.error}' for p in self.broken)})"
        return message

    def _suggestion(self, name: str) -> str:
        from difflib import get_close_matches  # here, since listing must stay instant

        close = get_close_matches(name, {*self.names, *DISTRIBUTION_OF_OPTIMIZER}, n=1)
        return f"; did you mean {close[0]!r}?" if close else ""


def _ambiguous(name: str, found: list[RegisteredOptimizer]) -> str:
    choices = " or ".join(f"{o.distribution}:{o.spec.name}" for o in found)
    return f"{name!r} is offered by {' and '.join(o.origin for o in found)}; choose with {choices}"


def load_registry() -> OptimizerRegistry:
    """Load every installed plugin. Never raises for a broken one; see `OptimizerRegistry.broken`."""
    optimizers: list[RegisteredOptimizer] = []
    policies: list[RegisteredFreezePolicy] = []
    broken: list[BrokenPlugin] = []
    for entry in find_entry_points(hookspecs.PROJECT):
        origin = entry.distribution, entry.version
        try:
            # What a plugin prints must not get into the output of --json.
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")
                specs, freezing = _read_plugin(entry)
        except (Exception, SystemExit) as error:
            broken.append(BrokenPlugin(entry.name, *origin, _one_line(error)))
        else:
            optimizers += [RegisteredOptimizer(spec, *origin) for spec in specs]
            policies += [RegisteredFreezePolicy(policy, *origin) for policy in freezing]
    return OptimizerRegistry(
        tuple(sorted(optimizers, key=lambda o: (o.spec.name, o.distribution))),
        tuple(sorted(policies, key=lambda p: (p.policy.section, p.distribution))),
        tuple(broken),
    )


def _read_plugin(entry: EntryPoint) -> tuple[list[OptimizerSpec], list[FreezePolicy]]:
    plugin = entry.load()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        raise PluginError(f"{_describe(plugin)} implements no hook; is @hookimpl missing?")
    specs = _results(manager.hook.ed_register_optimizers, OptimizerSpec)
    freezing = _results(manager.hook.ed_register_freeze_policies, FreezePolicy)
    _check_unique([spec.name for spec in specs])
    _check_unique([policy.section for policy in freezing])
    return specs, freezing


def _results(hook: pluggy.HookCaller, kind: type[Any]) -> list[Any]:
    """One list of specs out of what a plugin's hook returned, with every member checked."""
    results = hook()
    if hook.get_hookimpls() and not results:  # pluggy leaves None out
        raise PluginError(f"{hook.name} returned None; expected an iterable of {kind.__name__}")
    flat: list[Any] = []
    for result in results:
        if isinstance(result, kind) or not isinstance(result, Iterable):
            raise PluginError(f"{hook.name} returned {result!r}; expected an iterable of {kind.__name__}")
        flat += result
    for member in flat:
        if not isinstance(member, kind):
            raise PluginError(f"{hook.name} returned {member!r} among its results; expected {kind.__name__}")
    return flat


def _check_unique(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise PluginError(f"{name!r} is offered twice by one plugin")


def _describe(plugin: object) -> str:
    return plugin.__name__ if isinstance(plugin, ModuleType) else repr(plugin)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"
