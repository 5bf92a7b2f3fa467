"""``ed-train --schema optimizer|train|validation``: the JSON Schema of a configuration file, for editors."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from ed_train.commands.as_json import print_json
from ed_train.config.describe import show
from ed_train.config.schema import optimizer_schema, train_schema, validation_schema
from ed_train.config.validate import json_schema
from ed_train.errors import ConfigError, PluginError, Problem
from ed_train.registry import OptimizerRegistry


def print_schema(kind: str, registry: OptimizerRegistry) -> None:
    """Print the schema of optimizer.json, for the installed plugins, of train.json or of a validation file.

    Raises:
        ConfigError: `kind` is something else.
    """
    if kind == "optimizer":
        print_json(optimizer_schema(_describable(registry)))
    elif kind == "train":
        print_json(train_schema())
    elif kind == "validation":
        print_json(validation_schema())
    else:
        raise ConfigError([Problem("--schema", "", f"got {show(kind)}; expected optimizer, train or validation")])


def _describable(registry: OptimizerRegistry) -> OptimizerRegistry:
    """The registry without what has options whose types no schema can describe; says on stderr what that is."""

    def fits(owner: str, name: str, config_type: type[Any]) -> bool:
        try:
            json_schema(config_type)
        except PluginError as error:
            print(f"warning: {owner}: {name} is not in the schema: {error}", file=sys.stderr)
            return False
        return True

    return replace(
        registry,
        optimizers=tuple(o for o in registry if fits(o.origin, o.spec.name, o.spec.config_type)),
        freeze_policies=tuple(
            p
            for p in registry.freeze_policies
            if fits(f"{p.distribution} {p.version}", p.policy.section, p.policy.config_type)
        ),
    )
