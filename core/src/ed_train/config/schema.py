"""JSON Schemas of the configuration files, for editors: from the types that check the files. Without torch.

A schema sees one file, and mostly one key of it. It leaves to the trainer what depends on several keys, on other files
or on flags, the rules about names and paths, and 2.0 where an integer is expected, which is one in JSON Schema. It is
stricter in two things: optimizers' names in lower case only, and no unknown key, not even with null.
"""

from __future__ import annotations

import math
from typing import Any

from ed_train import __version__
from ed_train.config.checks import RESOLUTION_STEP
from ed_train.config.describe import annotations_of, default_of, help_of
from ed_train.config.freeze_sections import FREE_KEYS
from ed_train.config.optimizer_keys import SCALE_KEYS, STOCK_OPTIONS, ScaleAndTweaks, ScheduleConfig
from ed_train.config.train_keys import DEAD, TrainConfig
from ed_train.config.validate import json_schema
from ed_train.config.validation import ALIASES, ValidationConfig
from ed_train.first_party import DEFAULT_OPTIMIZER, DISTRIBUTION_OF_SECTION
from ed_train.registry import OptimizerRegistry, RegisteredFreezePolicy, RegisteredOptimizer
from ed_train.specs import option_names

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
CLASS_NAME = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_FREE = {key: {"description": "anything; the trainer does not look at it"} for key in FREE_KEYS}
_UNSET = {"type": "null"}


def train_schema() -> Schema:
    """The schema of train.json."""
    properties = _properties(TrainConfig)
    properties["resolution"]["multipleOf"] = RESOLUTION_STEP
    for key, instead in DEAD.items():
        properties[key] |= {"deprecated": True, "description": f"without effect; {instead}".rstrip("; ")}
    return {
        "$schema": DIALECT,
        "title": "train.json of ed-train",
        "$comment": f"made by ed-train {__version__}",
        "type": "object",
        "properties": {**_FREE, **properties},
        "additionalProperties": False,
    }


def validation_schema() -> Schema:
    """The schema of the file that validation_config names."""
    properties = _properties(ValidationConfig)
    aliases = {alias: {**properties[key], "deprecated": True} for alias, key in ALIASES.items()}
    return {
        "$schema": DIALECT,
        "title": "a validation file of ed-train",
        "$comment": f"made by ed-train {__version__}",
        "type": "object",
        "properties": {**_FREE, "documentation": _FREE["doc"], **properties, **aliases},
        "additionalProperties": False,
    }


def optimizer_schema(registry: OptimizerRegistry) -> Schema:
    """The schema of optimizer.json for the installed plugins."""
    single = _properties(ScaleAndTweaks)
    scale = single[SCALE_KEYS[0]]
    sections = {section: _not_installed(owner) for section, owner in DISTRIBUTION_OF_SECTION.items()}
    sections |= {policy.policy.section: _freezing(policy) for policy in registry.freeze_policies}
    plugins = ", ".join(f"{distribution} {version}" for distribution, version in sorted(registry.versions.items()))
    return {
        "$schema": DIALECT,
        "title": "optimizer.json of ed-train",
        "$comment": f"made by ed-train {__version__} with {plugins or 'no plugin'}; make it anew after an installation",
        "type": "object",
        "properties": {
            **_FREE,
            "base": {
                "$ref": "#/$defs/section",
                "description": "the UNet's optimizer, and what the text encoder inherits",
            },
            "text_encoder_overrides": {
                "$ref": "#/$defs/section",
                "description": "what is different for the text encoder; null: as in base",
                "properties": dict.fromkeys(SCALE_KEYS, scale),
            },
            **single,
            SCALE_KEYS[1]: {**scale, "deprecated": True},
            **sections,
        },
        "additionalProperties": False,
        "allOf": [*_options_by_optimizer(registry), *_known_keys(registry)],
        "$defs": {
            "section": _section(registry),
            **{_key(o): {"properties": _properties(o.spec.config_type)} for o in registry},
        },
    }


def _section(registry: OptimizerRegistry) -> Schema:
    """What base and text_encoder_overrides have in common, whatever the optimizer."""
    names = [name for o in registry for name in _names(o, registry)]
    optimizer = {
        "description": f"a name that ed-train --list-optimizers shows, or module:Class; null: {DEFAULT_OPTIMIZER} "
        "in base, as in base for the text encoder",
        "anyOf": [{"enum": [*names, None]}, {"type": "string", "pattern": CLASS_NAME}],
    }
    return {
        "type": ["object", "null"],
        "properties": {**_FREE, "optimizer": optimizer, **_properties(ScheduleConfig)},
    }


def _options_by_optimizer(registry: OptimizerRegistry) -> list[Schema]:
    """Check the options of each optimizer where it is chosen; the text encoder inherits the choice."""
    rules = []
    for o in registry:
        names, options = _names(o, registry), {"$ref": f"#/$defs/{_key(o)}"}
        base = _chooses("base", {"enum": names})
        if DEFAULT_OPTIMIZER in names:
            base = {"anyOf": [base, _chooses_none("base")]}
        overrides = _overrides_choose(base, {"enum": names})
        rules.append({"if": base, "then": {"properties": {"base": options}}})
        rules.append({"if": overrides, "then": {"properties": {"text_encoder_overrides": options}}})
    return rules


def _known_keys(registry: OptimizerRegistry) -> list[Schema]:
    """Refuse keys that no installed optimizer has, but for a bare class, whose options are not known here.

    Keys that only other optimizers have are allowed: the trainer says that they have no effect.
    """
    options = {*STOCK_OPTIONS, *(name for o in registry for name in option_names(o.spec.config_type))}
    known = [*FREE_KEYS, "optimizer", *option_names(ScheduleConfig), *sorted(options)]
    names = [name for o in registry for name in _names(o, registry)]
    a_class = {"type": "string", "pattern": CLASS_NAME, "not": {"enum": names}}
    base = _chooses("base", a_class)
    overrides = _overrides_choose(base, a_class)
    only_known = {"propertyNames": {"enum": known}}
    only_known_or_scale = {"propertyNames": {"enum": [*known, *SCALE_KEYS]}}
    return [
        {"if": base, "else": {"properties": {"base": only_known}}},
        {"if": overrides, "else": {"properties": {"text_encoder_overrides": only_known_or_scale}}},
    ]


def _chooses(section: str, name: Schema) -> Schema:
    """A file whose section has an optimizer with such a name."""
    chosen = {"type": "object", "required": ["optimizer"], "properties": {"optimizer": name}}
    return {"required": [section], "properties": {section: chosen}}


def _chooses_none(section: str) -> Schema:
    """A file whose section is absent or null, or whose optimizer is."""
    return {"properties": {section: {"properties": {"optimizer": _UNSET}}}}


def _overrides_choose(base: Schema, name: Schema) -> Schema:
    """A file whose text encoder has an optimizer with such a name, of its own or from a base like this."""
    inherited = {"allOf": [base, _chooses_none("text_encoder_overrides")]}
    return {"anyOf": [_chooses("text_encoder_overrides", name), inherited]}


def _names(optimizer: RegisteredOptimizer, registry: OptimizerRegistry) -> list[str]:
    """What may be written for an optimizer; the bare name only where no other plugin offers it."""
    name = optimizer.spec.name
    is_unique = sum(o.spec.name == name for o in registry) == 1
    return [name] * is_unique + [f"{optimizer.distribution}:{name}"]


def _key(optimizer: RegisteredOptimizer) -> str:
    return f"{optimizer.distribution}.{optimizer.spec.name}"


def _freezing(registered: RegisteredFreezePolicy) -> Schema:
    """A freeze policy's section; one with a single option may also be that option's value."""
    policy = registered.policy
    options = _properties(policy.config_type)
    section = {"type": ["object", "null"], "properties": {**_FREE, **options}, "additionalProperties": False}
    forms = [section, *(options.values() if len(options) == 1 else ())]
    return {"description": policy.summary, **(section if len(forms) == 1 else {"anyOf": forms})}


def _not_installed(distribution: str) -> Schema:
    return {"type": "null", "description": f"not installed: pip install {distribution}"}


def _properties(config_type: type[Any]) -> dict[str, Schema]:
    """The schema of each option: type, range, default and help. Null means not set, for all of them."""
    checked = json_schema(config_type)["properties"]
    properties = {}
    for name, annotation in annotations_of(config_type).items():
        schema = {"description": help_of(annotation), "default": default_of(config_type, name)}
        if not schema["description"]:
            del schema["description"]
        if schema["default"] in (math.inf, -math.inf):  # which JSON cannot hold
            del schema["default"]
        properties[name] = {**schema, **_or_null(checked[name])}
    return properties


def _or_null(schema: Schema) -> Schema:
    """The schema, without pydantic's title, of the same value or null."""
    members = [member for member in schema.get("anyOf", [schema]) if member != _UNSET]
    members = [{key: value for key, value in member.items() if key != "title"} for member in members]
    if {} in members:  # anything
        return {}
    if len(members) == 1 and isinstance(members[0].get("type"), str) and "const" not in members[0]:
        (member,) = members
        values = {"enum": [*member["enum"], None]} if "enum" in member else {}
        return {**member, "type": [member["type"], "null"], **values}
    return {"anyOf": [*members, _UNSET]}
