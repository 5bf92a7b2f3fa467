"""``ed-train --schema optimizer|train|validation``: the JSON Schema of a configuration file, for editors."""

from __future__ import annotations

from ed_train.commands.as_json import print_json
from ed_train.config.describe import show
from ed_train.config.schema import optimizer_schema, train_schema, validation_schema
from ed_train.errors import ConfigError, Problem
from ed_train.registry import OptimizerRegistry


def print_schema(kind: str, registry: OptimizerRegistry) -> None:
    """Print the schema of optimizer.json, for the installed plugins, of train.json or of a validation file.

    Raises:
        ConfigError: `kind` is something else.
        PluginError: an optimizer's options have types that no schema can describe.
    """
    if kind == "optimizer":
        print_json(optimizer_schema(registry))
    elif kind == "train":
        print_json(train_schema())
    elif kind == "validation":
        print_json(validation_schema())
    else:
        raise ConfigError([Problem("--schema", "", f"got {show(kind)}; expected optimizer, train or validation")])
