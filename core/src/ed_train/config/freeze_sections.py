"""Resolve the sections of optimizer.json that freeze layers: each belongs to a plugin's `FreezePolicy`."""

from __future__ import annotations

from typing import Any

from ed_train.config.describe import show_with_type
from ed_train.config.jsontext import Document
from ed_train.config.run import FreezeConfig
from ed_train.config.validate import validated
from ed_train.errors import PluginError, Problem
from ed_train.registry import OptimizerRegistry, RegisteredFreezePolicy
from ed_train.specs import option_names

FREE_KEYS = ("doc", "$schema")
"""Keys that may hold anything in any object of our files."""


def resolve_freezing(
    document: Document | None, registry: OptimizerRegistry, problems: list[Problem], notes: list[str]
) -> tuple[FreezeConfig, ...]:
    """Check every section that a policy answers for; adds to `problems` and `notes`."""
    if document is None:
        return ()
    by_section: dict[str, list[RegisteredFreezePolicy]] = {}
    for policy in registry.freeze_policies:
        by_section.setdefault(policy.policy.section, []).append(policy)
    resolved = []
    for section, policies in by_section.items():
        if document.value.get(section) is None:
            continue
        if len(policies) > 1:
            owners = " and ".join(p.distribution for p in policies)
            message = f"{owners} both offer this section; uninstall one of them"
            problems.append(Problem(document.where(section), section, message))
        elif config := _resolve_section(document, policies[0], problems, notes):
            resolved.append(config)
    return tuple(resolved)


def _resolve_section(
    document: Document, policy: RegisteredFreezePolicy, problems: list[Problem], notes: list[str]
) -> FreezeConfig | None:
    section, config_type = policy.policy.section, policy.policy.config_type
    values: Any = document.value[section]
    options = option_names(config_type)
    if not isinstance(values, dict) and len(options) == 1:
        values = {options[0]: values}
    if not isinstance(values, dict):
        message = f"got {show_with_type(values)}; expected an object: {{...}}"
        problems.append(Problem(document.where(section), section, message))
        return None
    values = {key: value for key, value in values.items() if value is not None and key not in FREE_KEYS}

    def where(key: str) -> str:
        return document.where(section, key) if (section, key) in document.lines else document.where(section)

    try:
        config, found, warned = validated(config_type, values, key_prefix=f"{section}.", where=where)
    except PluginError as error:
        problems.append(Problem(document.where(section), section, f"{policy.distribution} {policy.version}: {error}"))
        return None
    problems += found
    notes += [f"{document.where(section)}: {section}: {message}" for message in warned]
    return FreezeConfig(policy, config, document.where(section)) if config is not None else None
