"""Check ``required_plugins``: a configuration can say which plugins, in which versions, it was written for."""

from __future__ import annotations

from ed_train import __version__
from ed_train.config.describe import show, show_with_type
from ed_train.config.optimizer_keys import Given
from ed_train.entry_points import normalized
from ed_train.errors import ConfigError, Problem
from ed_train.first_party import DISTRIBUTION_OF_OPTIMIZER
from ed_train.registry import OptimizerRegistry
from ed_train.requirement import satisfies, split_requirement
from ed_train.selection import CORE, LEFT_OUT_BY


def check_required_plugins(given: Given | None, registry: OptimizerRegistry) -> None:
    """Check what ``required_plugins`` names, before anything else: every other problem may follow from it.

    Raises:
        ConfigError: a plugin is missing, broken, left out or has another version; lists all of them.
    """
    if given is None:
        return
    if not isinstance(given.value, list):
        message = f'got {show_with_type(given.value)}; expected a list of texts, e.g. ["ed-train-lion>=0.1"]'
        raise ConfigError([Problem(given.where, given.key, message)])
    messages = [message for member in given.value if (message := _missing(member, registry))]
    if messages:
        raise ConfigError(Problem(given.where, given.key, message) for message in messages)


def _missing(member: object, registry: OptimizerRegistry) -> str:
    """What is wrong with one requirement; empty if the plugin is there."""
    split = split_requirement(member) if isinstance(member, str) else None
    if split is None:
        return f"got {show_with_type(member)}; expected a distribution and a range, e.g. ed-train-lion>=0.1"
    name, wanted = normalized(split[0]), split[1]
    install = f"pip install {show(f'{name}{wanted}') if wanted else name}"
    versions = {**registry.versions, CORE: __version__}
    if name in registry.left_out:
        return f"{name} is required, and {LEFT_OUT_BY} leaves it out"
    if name not in versions:
        return _unknown(name, registry) or f"the plugin {name} is required and not installed: {install}"
    for plugin in registry.broken:
        if plugin.distribution == name:
            return f"{name} {plugin.version} is required, and it is broken: {plugin.error}"
    try:
        fits = satisfies(versions[name], wanted)
    except ValueError as error:
        return f"got {show(member)}: {error}; expected a distribution and a range, e.g. ed-train-lion>=0.1"
    return "" if fits else f"{member} is required, and {name} {versions[name]} is installed: {install}"


def _unknown(name: str, registry: OptimizerRegistry) -> str:
    """What a name is that is no plugin's, where it can be told; installing it would not help."""
    from importlib.metadata import PackageNotFoundError, version

    full = f"{CORE}-{name}"
    if full in {*registry.versions, *registry.left_out, *DISTRIBUTION_OF_OPTIMIZER.values()}:
        return f"got {show(name)}; expected the name of a distribution; did you mean {full}?"
    try:
        return f"{name} {version(name)} is installed, and it is no plugin of {CORE}; name plugins only"
    except PackageNotFoundError:
        return ""
