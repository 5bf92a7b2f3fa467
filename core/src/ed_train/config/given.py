"""What a user gave: train.json, and flags over it; checked key by key. Never imports torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ed_train.config.describe import annotations_of, is_list, leaf_types
from ed_train.config.freeze_sections import FREE_KEYS
from ed_train.config.jsontext import Document
from ed_train.config.optimizer_keys import Given
from ed_train.config.other_names import name_here
from ed_train.config.record import Record, read_record
from ed_train.config.train_keys import TrainConfig
from ed_train.config.validate import validated
from ed_train.errors import Problem

INPUTS = (
    "data_root",
    "ema_resume_model",
    "model_config",
    "optimizer_config",
    "resume_ckpt",
    "sample_prompts",
    "validation_config",
)
"""Keys whose values are paths of inputs."""


def read_settings(document: Document | None) -> tuple[Document | None, Record | None]:
    """A train.json as it is; or the section of a run.json that stands for it, and its other sections.

    Raises:
        ConfigError: it is a run.json of another format, or lacks a section.
    """
    record = read_record(document) if document else None
    return (record.train if record else document), record


def given_values(flags: Mapping[str, str], document: Document | None) -> dict[str, Given]:
    """What the user set, flags over file; null means not set."""
    given: dict[str, Given] = {}
    if document:
        for key, value in document.value.items():
            if value is not None and key not in FREE_KEYS:
                given[key] = Given(value, document.where(key), key)
    annotations = annotations_of(TrainConfig)
    for key, text in flags.items():
        value = _flag_value(text, annotations[key])
        if key in INPUTS and os.path.exists(text):
            value = os.path.abspath(text)  # what is named on the command line is looked up from where it is typed
        if value is not None:
            given[key] = Given(value, f"--{key}", "")
        else:
            given.pop(key, None)
    return given


def _flag_value(text: str, annotation: Any) -> Any:
    """A flag's text as the JSON value that it means; texts for keys that are texts."""
    leaves = leaf_types(annotation)
    if text.lower() in ("null", "none"):
        return None
    if leaves & {bool, Any} and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if is_list(annotation):
        return _flag_list(text)
    if leaves & {int, float, Any}:
        for convert in (int, float):
            try:
                return convert(text)
            except ValueError:
                continue
    return text


def _flag_list(text: str) -> Any:
    """A list as in the file, whose members may have commas, as ranges of versions do; or what is between commas."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def train_config(given: Mapping[str, Given]) -> tuple[TrainConfig, list[Problem], list[str]]:
    """The checked settings; keys with a problem have their defaults, so that the rest can be checked all the same."""
    train, problems, notes = validated(TrainConfig, {key: g.value for key, g in given.items()})
    if problems:
        wrong = {p.key for p in problems}
        train, _, notes = validated(TrainConfig, {key: g.value for key, g in given.items() if key not in wrong})
    known = annotations_of(TrainConfig)
    located = []
    for problem in problems:
        own_name = None if problem.key in known else name_here(problem.key)
        message = f"unknown key; {own_name}" if own_name else problem.message
        located.append(Problem(given[problem.key].where, given[problem.key].key, message))
    return train, located, notes
