"""The file that validation_config names: which pictures to validate on, how, and how often. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ed_train.config.checks import PLAIN_NAME, PLAIN_NAME_WORDS, find_input
from ed_train.config.describe import annotations_of, show
from ed_train.config.freeze_sections import FREE_KEYS
from ed_train.config.jsontext import Document
from ed_train.config.train_keys import Count
from ed_train.config.validate import validated
from ed_train.errors import Problem
from ed_train.specs import Bounds, Help, Positive

VAL, TRAIN = "val", "train"
"""Names of the set that is split off or given by hand, and of the sample of pictures that do train."""
FREE = (*FREE_KEYS, "documentation")
ALIASES = {"auto_split_proportion": "val_split_proportion", "manual_data_root": "val_data_root"}
"""Other names that EveryDream 2 has for the same keys."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What a validation file says. A null in the file means the default."""

    validate_training: Annotated[bool, Help("validate on the pictures that val_split_mode chooses")] = True
    val_split_mode: Annotated[
        Literal["automatic", "manual", "none"],
        Help("automatic: hold pictures of data_root back from training; manual: those of val_data_root"),
    ] = "automatic"
    val_split_proportion: Annotated[
        Annotated[float, Bounds(gt=0, lt=1)], Help("share of the pictures that an automatic split holds back")
    ] = 0.15
    val_data_root: Annotated[str | None, Help("folder of pictures and captions for a manual split")] = None
    extra_manual_datasets: Annotated[
        dict[str, str], Help("more folders by name, each validated by itself and with a curve of its own")
    ] = field(default_factory=dict)
    stabilize_training_loss: Annotated[
        bool, Help("also compute the loss of a fixed sample of the training pictures, with the same noise every time")
    ] = False
    stabilize_split_proportion: Annotated[
        Annotated[float, Bounds(gt=0, le=1)], Help("share of the training pictures in that sample")
    ] = 0.15
    every_n_epochs: Annotated[
        Positive, Help("how often; 0.5 is twice an epoch. Also before the first step and at the end")
    ] = 1.0
    batch_size: Annotated[Count | None, Help("pictures at once; null: train.json's batch_size")] = None
    seed: Annotated[
        Annotated[int, Bounds(ge=0, le=2**32 - 1)], Help("decides the splits, and timesteps and noise of each picture")
    ] = 555
    timesteps_per_image: Annotated[
        Annotated[int, Bounds(ge=1, le=1000)], Help("evaluations of each picture, spread over the timesteps")
    ] = 1
    use_relative_loss: Annotated[bool, Help("also log how far each loss is from its first value")] = False
    keep_best_ckpt: Annotated[
        bool, Help("keep the weights with the lowest loss of val, or else of the first of extra_manual_datasets")
    ] = False

    @property
    def held_back(self) -> bool:
        """Whether pictures of data_root do not train."""
        return self.validate_training and self.val_split_mode == "automatic"

    @property
    def folders(self) -> dict[str, str]:
        """Folders of pictures of their own, by the name of the set."""
        manual = self.validate_training and self.val_split_mode == "manual" and self.val_data_root
        return {**({VAL: self.val_data_root} if manual and self.val_data_root else {}), **self.extra_manual_datasets}

    @property
    def names(self) -> list[str]:
        """The sets, in the order in which they are shown."""
        return [
            *([VAL] if self.held_back else []),
            *self.folders,
            *([TRAIN] if self.stabilize_training_loss else []),
        ]

    @property
    def watched(self) -> str | None:
        """The set whose lowest loss is the best one; None if there is only the training's, which mostly falls."""
        name = next(iter(self.names), None)
        return None if name == TRAIN else name


@dataclass(frozen=True)
class Validation:
    """The validation of a run.

    Attributes:
        config: the settings, with absolute paths.
        sources: where each key that is not a default was set, e.g. ``validation.json:3``; folders of
            extra_manual_datasets under ``extra_manual_datasets.NAME``.
    """

    config: ValidationConfig
    sources: Mapping[str, str] = field(default_factory=dict)

    def source_of_folder(self, name: str) -> tuple[str, str]:
        """Where a set's folder was named, and by which key."""
        key = "val_data_root" if name == VAL else f"extra_manual_datasets.{name}"
        return self.sources.get(key, ""), key


def parse_validation(document: Document, folder: Path) -> tuple[Validation | None, list[Problem], list[str]]:
    """Check a validation file.

    Args:
        document: its content.
        folder: where relative paths are looked up first; the current folder is next.

    Returns:
        The settings, or None if there are problems or nothing is validated; problems; lines for the user.
    """
    values, keys, problems = _given(document)
    config, found, _ = validated(ValidationConfig, values, where=lambda key: document.where(keys[key]))
    problems += [replace(p, key=keys.get(p.key, p.key)) for p in found]
    if config is None:
        return None, problems, []
    sources = {key: document.where(name) for key, name in keys.items()}
    for name in config.extra_manual_datasets:
        sources[f"extra_manual_datasets.{name}"] = document.where("extra_manual_datasets", name)
    problems += _problems(config, sources)
    usable = {name: path for name, path in config.extra_manual_datasets.items() if name not in (VAL, TRAIN)}
    folders, found = _found_folders(Validation(replace(config, extra_manual_datasets=usable), sources), folder)
    problems += found
    if problems:
        return None, problems, []
    extra = {name: folders[name] for name in config.extra_manual_datasets}
    config = replace(config, val_data_root=folders.get(VAL, config.val_data_root), extra_manual_datasets=extra)
    notes = _notes(config, sources)
    if not config.names:
        return None, [], [*notes, f"{document.path.name}: nothing is validated: every kind of validation is off"]
    return Validation(config, sources), [], notes


def _given(document: Document) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """The values that are set, by the key's real name; the name as written; problems of keys that are there twice."""
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    problems = []
    for written, value in document.value.items():
        key = ALIASES.get(written, written)
        if value is None or written in FREE:
            continue
        if key in values and values[key] != value:
            message = f"contradicts {keys[key]} {show(values[key])}; they are the same: keep one of them"
            problems.append(Problem(document.where(written), written, message))
            continue
        values[key], keys[key] = value, written
    return values, keys, problems


def _problems(config: ValidationConfig, sources: Mapping[str, str]) -> list[Problem]:
    """Values that contradict each other, and names that cannot be used."""
    problems = []

    def add(key: str, message: str) -> None:
        problems.append(Problem(sources.get(key, ""), key, message))

    manual = config.validate_training and config.val_split_mode == "manual"
    if manual and config.val_data_root is None and not config.extra_manual_datasets:
        add("val_split_mode", 'got "manual"; it needs val_data_root, a folder of pictures and captions')
    for name in config.extra_manual_datasets:
        key = f"extra_manual_datasets.{name}"
        if name in (VAL, TRAIN):
            add(key, f"{show(name)} is the name of another set; choose another name")
        elif not PLAIN_NAME.match(name):
            add(key, f"got the name {show(name)}; {PLAIN_NAME_WORDS}")
    if config.keep_best_ckpt and config.watched is None:
        add("keep_best_ckpt", "needs a set to compare by: val, or one of extra_manual_datasets")
    return problems


def _found_folders(validation: Validation, base: Path) -> tuple[dict[str, str], list[Problem]]:
    """The folders as absolute paths."""
    folders, problems = {}, []
    for name, value in validation.config.folders.items():
        path, message = find_input(value, base)
        if path is not None and not path.is_dir():
            message = f"got {show(value)}; expected a folder, but {path} is none"
        if message:
            problems.append(Problem(*validation.source_of_folder(name), message))
        folders[name] = str(path)
    return folders, problems


def _notes(config: ValidationConfig, sources: Mapping[str, str]) -> list[str]:
    """Lines about keys that do nothing beside the others."""
    idle: dict[str, str] = {}
    if not config.validate_training:
        idle = dict.fromkeys(("val_split_mode", "val_split_proportion", "val_data_root"), "validate_training is false")
    elif config.val_split_mode != "automatic":
        idle["val_split_proportion"] = f"val_split_mode is {config.val_split_mode}"
    if config.validate_training and config.val_split_mode != "manual":
        idle["val_data_root"] = f"val_split_mode is {config.val_split_mode}"
    if not config.stabilize_training_loss:
        idle["stabilize_split_proportion"] = "stabilize_training_loss is false"
    return [
        f"{sources[key]}: {key} has no effect: {why}"
        for key, why in idle.items()
        if key in sources and getattr(config, key) != _STOCK[key]
    ]


_STOCK = {key: getattr(ValidationConfig(), key) for key in annotations_of(ValidationConfig)}
