"""Find the installed plugins and hold what they offer.

Entry points are loaded one by one and each is registered with a plugin manager of its own, because pluggy's loader
stops at the first plugin that fails to import. A plugin that is broken is recorded, never raised, until someone asks
for its optimizer.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import pluggy
from importlib_metadata import EntryPoint, entry_points

from ed_train import hookspecs
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
        found = [o for o in self.optimizers if o.spec.name == short and distribution in ("", o.distribution)]
        if len(found) == 1:
            return found[0]
        raise ConfigError(self._not_found(name, distribution, short) if not found else _ambiguous(name, found))

    def _not_found(self, name: str, distribution: str, short: str) -> str:
        owner = distribution or DISTRIBUTION_OF_OPTIMIZER.get(short, "")
        for plugin in self.broken:
            if plugin.distribution == owner:
                return f"{name!r} is in {owner} {plugin.version}, which is installed but broken: {plugin.error}"
        message = f"no installed optimizer is called {name!r}"
        if DISTRIBUTION_OF_OPTIMIZER.get(short) == owner != "":
            message = f"{name!r} needs the distribution {owner}, which is not installed: pip install {owner}"
        elif close := get_close_matches(short, {*self.names, *DISTRIBUTION_OF_OPTIMIZER}, n=1):
            message += f"; did you mean {close[0]!r}?"
        message += f" (installed: {', '.join(self.names) or 'none'})"
        if self.broken:
            message += f" (broken: {'; '.join(f'{p.distribution}: {p.error}' for p in self.broken)})"
        return message


def _ambiguous(name: str, found: list[RegisteredOptimizer]) -> str:
    choices = " or ".join(f"{o.distribution}:{o.spec.name}" for o in found)
    return f"{name!r} is offered by {' and '.join(o.origin for o in found)}; choose with {choices}"


def load_registry() -> OptimizerRegistry:
    """Load every installed plugin. Never raises for a broken one; see `OptimizerRegistry.broken`."""
    optimizers: list[RegisteredOptimizer] = []
    policies: list[RegisteredFreezePolicy] = []
    broken: list[BrokenPlugin] = []
    for entry in sorted(entry_points(group=hookspecs.PROJECT), key=lambda e: (_distribution(e), e.name)):
        distribution, version = _distribution(entry)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                specs, freezing = _read_plugin(entry)
        except (Exception, SystemExit) as error:
            broken.append(BrokenPlugin(entry.name, distribution, version, _one_line(error)))
        else:
            optimizers += [RegisteredOptimizer(spec, distribution, version) for spec in specs]
            policies += [RegisteredFreezePolicy(policy, distribution, version) for policy in freezing]
    return OptimizerRegistry(
        tuple(sorted(optimizers, key=lambda o: (o.spec.name, o.distribution))),
        tuple(sorted(policies, key=lambda p: (p.policy.section, p.distribution))),
        tuple(broken),
    )


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    """Name and version, read by hand: importlib_metadata's own properties import the email package, 15 ms."""
    header = (entry.dist and (entry.dist.read_text("METADATA") or entry.dist.read_text("PKG-INFO"))) or ""
    fields = dict(re.findall(r"^(Name|Version): *(\S+)", header, re.MULTILINE))
    return fields.get("Name", "unknown").lower().replace("_", "-"), fields.get("Version", "unknown")


def _read_plugin(entry: EntryPoint) -> tuple[list[OptimizerSpec], list[FreezePolicy]]:
    plugin = entry.load()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        raise PluginError(f"{_describe(plugin)} implements no hook; is @hookimpl missing?")
    specs = _flatten(manager.hook.ed_register_optimizers(), OptimizerSpec, "ed_register_optimizers")
    freezing = _flatten(manager.hook.ed_register_freeze_policies(), FreezePolicy, "ed_register_freeze_policies")
    return specs, freezing


def _flatten(results: list[Any], kind: type[Any], hook: str) -> list[Any]:
    """One list of specs out of what a hook returned, with every member checked."""
    flat: list[Any] = []
    for result in results:
        if isinstance(result, kind) or not isinstance(result, Iterable):
            raise PluginError(f"{hook} returned {result!r}; expected an iterable of {kind.__name__}")
        flat += result
    for member in flat:
        if not isinstance(member, kind):
            raise PluginError(f"{hook} returned {member!r} among its results; expected {kind.__name__}")
    return flat


def _describe(plugin: object) -> str:
    return plugin.__name__ if isinstance(plugin, ModuleType) else repr(plugin)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"
