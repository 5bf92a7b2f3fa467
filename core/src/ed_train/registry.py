"""Find the installed plugins and hold what they offer.

Entry points are loaded one by one and each is alone with the plugin manager while it is asked, because pluggy's loader
stops at the first plugin that fails to import. A plugin that is broken is recorded, never raised, until someone asks
for its optimizer.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pluggy

from ed_train import hookspecs
from ed_train.entry_points import EntryPoint, find_entry_points, normalized
from ed_train.errors import ConfigError, PluginError, printable
from ed_train.first_party import DISTRIBUTION_OF_OPTIMIZER
from ed_train.selection import LEFT_OUT_BY, check_core_version, wanted_plugins
from ed_train.specs import CLASS_NAME, FreezePolicy, OptimizerSpec

SLOW_IMPORT = 0.25
"""Seconds; a plugin that imports nothing heavy takes a few milliseconds."""
HEAVY = frozenset({"torch", "numpy", "transformers", "diffusers", "accelerate", "tensorflow", "jax", "pydantic"})
"""Modules that no plugin should import before one of its optimizers is built."""


@dataclass(frozen=True)
class RegisteredOptimizer:
    """An optimizer and the distribution that it came from; not `verified`: a bare class, with no plugin behind it."""

    spec: OptimizerSpec
    distribution: str
    version: str
    verified: bool = True

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
class SlowPlugin:
    """A plugin whose import delays every command.

    Attributes:
        seconds: how long its import took.
        loads: the heavy modules that it imported at module level, e.g. ``torch``.
    """

    entry_point: str
    distribution: str
    version: str
    seconds: float
    loads: tuple[str, ...]

    def __str__(self) -> str:
        loads = f" and loads {', '.join(self.loads)}" if self.loads else ""
        return f"its import takes {self.seconds:.2f} s{loads}; every command waits for it"


@dataclass(frozen=True)
class OptimizerRegistry:
    """What the installed plugins offer; read-only and sorted, so that the order of plugins never matters.

    Attributes:
        slow: plugins whose import takes long; they work all the same.
        left_out: distributions that were not loaded because ED_TRAIN_PLUGINS or --no-plugin says so.
        versions: distribution to version, of every plugin that was loaded.
    """

    optimizers: tuple[RegisteredOptimizer, ...] = ()
    freeze_policies: tuple[RegisteredFreezePolicy, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()
    slow: tuple[SlowPlugin, ...] = ()
    left_out: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[RegisteredOptimizer]:
        return iter(self.optimizers)

    @property
    def names(self) -> list[str]:
        return sorted({o.spec.name for o in self.optimizers})

    def find(self, name: str) -> RegisteredOptimizer:
        """Return the optimizer called `name` (any case), ``distribution:name`` or ``module:Class``.

        Raises:
            ConfigError: nobody offers it (the message says what to install or suggests a name), or several do; or the
                class is not a usable optimizer.
        """
        name = _checked_name(name)
        distribution, _, short = name.strip().lower().rpartition(":")
        distribution = normalized(distribution)
        found = [o for o in self.optimizers if o.spec.name == short and distribution in ("", o.distribution)]
        if len(found) == 1:
            return found[0]
        if not found and distribution:
            known = short in {*self.names, *DISTRIBUTION_OF_OPTIMIZER} and short == name.strip().rpartition(":")[2]
            if CLASS_NAME.match(name.strip()) and not known:
                from ed_train.class_optimizer import optimizer_of_class

                return RegisteredOptimizer(*optimizer_of_class(name), verified=False)
        raise ConfigError(self._not_found(name, distribution, short) if not found else _ambiguous(name, found))

    def _not_found(self, name: str, distribution: str, short: str) -> str:
        owner = distribution or DISTRIBUTION_OF_OPTIMIZER.get(short, "")
        for plugin in self.broken:
            if plugin.distribution == owner:
                return f"{name!r} is in {owner} {plugin.version}, which is installed but broken: {plugin.error}"
        if owner in self.left_out:
            return f"{name!r} is in {owner}, which {LEFT_OUT_BY} leaves out"
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
        if not close and "." in name:
            return "; a class without a plugin is written module:Class, with a colon"
        return f"; did you mean {close[0]!r}?" if close else ""


def _checked_name(name: Any) -> str:
    if isinstance(name, str):
        return name
    such_as = f", such as {f'{name.__module__}:{name.__qualname__}'!r}" if isinstance(name, type) else ""
    raise ConfigError(f"got {name!r} for the name of an optimizer; expected a text{such_as}")


def _ambiguous(name: str, found: list[RegisteredOptimizer]) -> str:
    choices = " or ".join(f"{o.distribution}:{o.spec.name}" for o in found)
    return f"{name!r} is offered by {' and '.join(o.origin for o in found)}; choose with {choices}"


def load_registry(without: Collection[str] = ()) -> OptimizerRegistry:
    """Load every installed plugin. Never raises for a broken one; see `OptimizerRegistry.broken`.

    Args:
        without: plugins to leave out, by their entry point's name or their distribution's, with or without
            ``ed-train-``. The environment variable ED_TRAIN_PLUGINS names, in the same way, the only ones to load.

    Raises:
        ConfigError: one of these names belongs to no installed plugin.
    """
    entries = find_entry_points(hookspecs.PROJECT)
    wanted = wanted_plugins(entries, without)
    optimizers: list[RegisteredOptimizer] = []
    policies: list[RegisteredFreezePolicy] = []
    broken: list[BrokenPlugin] = []
    slow: list[SlowPlugin] = []
    manager = _Manager()
    for entry in wanted:
        origin = entry.distribution, entry.version
        started, heavy = time.perf_counter(), _heavy_modules()
        try:
            check_core_version(entry)
            # What a plugin prints must not get into the output of --json.
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")
                specs, freezing = _read_plugin(entry, manager)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit, and what libraries in Rust raise when they panic
            broken.append(BrokenPlugin(entry.name, *origin, _one_line(error)))
        else:
            optimizers += [RegisteredOptimizer(spec, *origin) for spec in specs]
            policies += [RegisteredFreezePolicy(policy, *origin) for policy in freezing]
        seconds, loads = time.perf_counter() - started, sorted(_heavy_modules() - heavy)
        if seconds > SLOW_IMPORT or loads:
            slow.append(SlowPlugin(entry.name, *origin, seconds, tuple(loads)))
    return OptimizerRegistry(
        tuple(sorted(optimizers, key=lambda o: (o.spec.name, o.distribution))),
        tuple(sorted(policies, key=lambda p: (p.policy.section, p.distribution))),
        tuple(broken),
        tuple(slow),
        tuple(dict.fromkeys(e.distribution for e in entries if e not in wanted)),
        {entry.distribution: entry.version for entry in wanted},
    )


def _heavy_modules() -> frozenset[str]:
    return HEAVY & sys.modules.keys()


class _Manager(pluggy.PluginManager):
    """Knows our hooks; looks for implementations among the public names of a plugin only, which halves the search."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


def _read_plugin(entry: EntryPoint, manager: _Manager) -> tuple[list[OptimizerSpec], list[FreezePolicy]]:
    """Load a plugin and ask it, alone with the manager, what it offers."""
    plugin = entry.load()
    try:
        manager.register(plugin)
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise PluginError(f"{_describe(plugin)} implements no hook; is @hookimpl missing?")
        specs = _results(manager.hook.ed_register_optimizers, OptimizerSpec)
        freezing = _results(manager.hook.ed_register_freeze_policies, FreezePolicy)
    finally:
        if manager.is_registered(plugin):
            manager.unregister(plugin)
    for spec in specs:
        if ":" in spec.name:
            raise PluginError(f"optimizer name {spec.name!r}: expected lower-case letters, digits and underscores")
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
    text = printable(" ".join(str(error).split())) or "no message"
    return f"{type(error).__name__}: {text}"
