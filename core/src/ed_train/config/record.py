"""``run.json``: a run's resolved configuration, and how to read it back as a configuration.

It holds the content of a train.json and an optimizer.json in which nothing is left to defaults, flags or other files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ed_train.config.describe import show_with_type
from ed_train.config.jsontext import Document
from ed_train.config.optimizer_keys import SCHEDULE_KEYS
from ed_train.config.run import TEXT_ENCODER, UNET, ComponentConfig, RunConfig
from ed_train.config.train_keys import DEAD
from ed_train.errors import ConfigError, Problem
from ed_train.registry import OptimizerRegistry

RECORD_KEY = "ed_train_run"
RECORD_FORMAT = 1
IN_OPTIMIZER_SECTION = ("lr", *SCHEDULE_KEYS, "optimizer_config", "sample_prompts", "validation_config")
"""Keys of train.json whose effect stands in the other sections of a record."""


@dataclass(frozen=True)
class Record:
    """The sections of a run.json, as the files that they stand for."""

    train: Document
    optimizer: Document
    samples: Document
    validation: Document | None
    plugins: Mapping[str, Any]


def configuration_of(run: RunConfig) -> dict[str, Any]:
    """The sections of run.json that say what to do, in JSON values."""
    unused = {"resume", "resume_changed", *DEAD, *IN_OPTIMIZER_SECTION}
    train = {key: value for key, value in vars(run.train).items() if key not in unused}
    if run.resume:  # the weights came from a checkpoint, the run from the model that its first part began with
        train |= {key: run.resume.run["train"].get(key) for key in ("resume_ckpt", "model_config", "ema_resume_model")}
    else:
        train |= {"resume_ckpt": run.model.location, "model_config": run.model.model_config, "ema_resume_model": None}
    if run.ema_model:
        train["ema_resume_model"] = run.ema_model.location
    return {
        RECORD_KEY: RECORD_FORMAT,
        "train": train,
        "optimizer": _optimizer_section(run),
        "sample_prompts": asdict(run.samples),
        "validation": asdict(run.validation.config) if run.validation else None,
    }


def _optimizer_section(run: RunConfig) -> dict[str, Any]:
    components = {name: _component_section(config) for name, config in run.components.items()}
    section: dict[str, Any] = {"base": components.get(UNET) or components[TEXT_ENCODER]}
    if UNET in components and TEXT_ENCODER in components:
        section["text_encoder_overrides"] = components[TEXT_ENCODER]
    for freezing in run.freezing:
        section[freezing.policy.policy.section] = asdict(freezing.options)
    return {**section, "apply_grad_scaler_step_tweaks": run.grad_scaler_tweaks}


def _component_section(config: ComponentConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    name = f"{optimizer.distribution}:{optimizer.spec.name}" if optimizer.verified else optimizer.spec.name
    options = {key: value for key, value in vars(config.options).items() if _is_json(value)}
    return {"optimizer": name, **options, **{key: getattr(config, key) for key in SCHEDULE_KEYS}}


def _is_json(value: Any) -> bool:
    """Whether JSON has this value; an infinity can only be a default, and is one again where it is left out."""
    if isinstance(value, tuple | list):
        return all(map(_is_json, value))
    return not isinstance(value, float) or math.isfinite(value)


def read_record(document: Document) -> Record | None:
    """The sections of a run.json; None if the document is something else, that is, a train.json.

    Raises:
        ConfigError: it is a run.json of another format, or lacks a section.
    """
    if RECORD_KEY not in document.value:
        return None
    if document.value[RECORD_KEY] != RECORD_FORMAT:
        message = f"got {document.value[RECORD_KEY]!r}; this ed-train reads format {RECORD_FORMAT}; upgrade ed-train"
        raise ConfigError([Problem(document.where(RECORD_KEY), RECORD_KEY, message)])
    names = ("train", "optimizer", "sample_prompts")
    missing = [name for name in names if not isinstance(document.value.get(name), dict)]
    if not isinstance(document.value.get("validation"), dict | None):
        message = f"got {show_with_type(document.value['validation'])}; expected an object or null"
        raise ConfigError([Problem(document.where("validation"), "validation", message)])
    if missing:
        message = "missing; a run.json has this section"
        raise ConfigError(Problem(document.path.name, name, message) for name in missing)
    plugins = document.value.get("plugins")
    train, optimizer, samples = (_section(document, name) for name in names)
    validates = isinstance(document.value.get("validation"), dict)  # null, or absent in old ones, where there is none
    validation = _section(document, "validation") if validates else None
    return Record(train, optimizer, samples, validation, plugins if isinstance(plugins, dict) else {})


def _section(document: Document, name: str) -> Document:
    lines = {key[1:]: line for key, line in document.lines.items() if key[:1] == (name,)}
    return replace(document, value=document.value[name], lines=lines)


def differing_plugins(record: Record, registry: OptimizerRegistry) -> list[str]:
    """A line for each plugin of which another version than the record's is installed."""
    return [
        f"the recorded run used {name} {version}, and {registry.versions[name]} is installed"
        for name, version in record.plugins.items()
        if name in registry.versions and registry.versions[name] != version
    ]
