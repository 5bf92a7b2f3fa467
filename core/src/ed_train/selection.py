"""Which of the installed plugins are loaded: those that the user wants, and that were made for this ed-train."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from ed_train.entry_points import EntryPoint, normalized
from ed_train.errors import ConfigError, PluginError, Problem
from ed_train.requirement import satisfies, split_requirement

CORE = "ed-train"
ONLY_VARIABLE = "ED_TRAIN_PLUGINS"
LEFT_OUT_BY = f"{ONLY_VARIABLE} or --no-plugin"


def wanted_plugins(entries: Sequence[EntryPoint], without: Collection[str]) -> list[EntryPoint]:
    """The plugins that neither ED_TRAIN_PLUGINS nor --no-plugin leaves out.

    Raises:
        ConfigError: one of the two names a plugin that is not installed.
    """
    only = os.environ.get(ONLY_VARIABLE)
    chosen = [name.strip() for name in (only or "").split(",") if name.strip()]
    known = {name for entry in entries for name in _names_of(entry)}
    for where, names in ((ONLY_VARIABLE, chosen), ("--no-plugin", without)):
        for name in names:
            if normalized(name) not in known:
                installed = ", ".join(sorted({entry.distribution for entry in entries})) or "none"
                message = f"no installed plugin is called {name!r}; installed: {installed}"
                raise ConfigError([Problem(where, "", message)])
    keep, drop = set(map(normalized, chosen)), set(map(normalized, without))
    return [e for e in entries if (only is None or _names_of(e) & keep) and not _names_of(e) & drop]


def _names_of(entry: EntryPoint) -> set[str]:
    """The names by which users may call a plugin."""
    return {entry.distribution, entry.distribution.removeprefix("ed-train-"), normalized(entry.name)}


def check_core_version(entry: EntryPoint) -> None:
    """Raise PluginError, before anything of the plugin is imported, if it was made for another version of ed-train."""
    from ed_train import __version__

    for requirement in map(split_requirement, entry.requires):
        if requirement and normalized(requirement[0]) == CORE and not satisfies(__version__, requirement[1]):
            advice = f"pip install --upgrade {CORE} {entry.distribution}"
            raise PluginError(f"needs {CORE}{requirement[1]}, and this is {__version__}: {advice}")
