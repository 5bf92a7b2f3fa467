"""From command-line flags and files to a `RunConfig`, or to every problem that they have. Never imports torch."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ed_train.config.changes import change_notes
from ed_train.config.checks import check_values, find_input, output_path
from ed_train.config.describe import annotations_of, default_of, show
from ed_train.config.ema import find_ema_model
from ed_train.config.given import given_values, read_settings, train_config
from ed_train.config.idle_keys import idle_key_notes
from ed_train.config.jsontext import Document, read_json_object
from ed_train.config.memory_keys import check_memory_keys
from ed_train.config.optimizer_file import OptimizerFileResolver
from ed_train.config.optimizer_keys import SCHEDULE_KEYS, Given
from ed_train.config.record import Record, differing_plugins
from ed_train.config.reload import settings_file
from ed_train.config.required import check_required_plugins
from ed_train.config.run import RunConfig
from ed_train.config.start import Start, find_start, recorded_configuration
from ed_train.config.train_keys import TrainConfig
from ed_train.config.validation import Validation, parse_validation
from ed_train.errors import ConfigError, Problem
from ed_train.models.prompts import SamplePrompt, SampleSettings, parse_sample_settings, read_sample_prompts
from ed_train.registry import OptimizerRegistry


def load_config(
    flags: Mapping[str, str], registry: OptimizerRegistry, config_file: Path | None = None, *, to_train: bool = True
) -> RunConfig:
    """Resolve a run.

    Args:
        flags: train.json keys to texts, as given on the command line; they win over the file.
        registry: the installed plugins.
        config_file: train.json; None if there is none.
        to_train: False for plans about the model alone: its weights and the pictures may be missing then.

    Raises:
        ConfigError: with every problem of all files and flags.
    """
    problems: list[Problem] = []
    document, record = _read_settings(flags, config_file, problems)
    given = given_values(flags, document)
    check_required_plugins(given.get("required_plugins"), registry)
    train, found, notes = train_config(given)
    problems += found
    notes += idle_key_notes(train, given) + (differing_plugins(record, registry) if record else [])
    folder = config_file.parent if config_file else Path()
    optimizer_path, found = _input_path(given, train, "optimizer_config", folder)
    problems += found
    optimizer_document = _read(optimizer_path, problems) or (record.optimizer if record else None)
    resolver = OptimizerFileResolver(optimizer_document, train, _overrides(given, problems), registry)
    optimizers = resolver.resolve() if optimizer_document or not train.optimizer_config else None
    problems += [*resolver.problems, *check_values(train, given)]
    problems += check_memory_keys(train, optimizers.components if optimizers else {}, registry, given)
    train, found = _resolved_paths(train, given, folder, to_train)
    problems += found
    start = find_start(train, given, folder, weights=to_train)
    find_ema_model(start, train, given, folder)
    problems += start.problems
    recorded = record.samples if record and "sample_prompts" not in given else None
    train, samples, found, sample_notes = _samples(given, train, folder, recorded)
    problems += found
    recorded = record.validation if record and "validation_config" not in flags else None
    validation = _validation(given, train, folder, recorded, problems, notes)
    if document is None and (config_file or any(p.where == "--resume" for p in start.problems)):
        problems = [p for p in problems if p.where]  # whatever else is missing may stand in the file or the checkpoint
    if problems or optimizers is None or start.model is None:
        raise ConfigError(_each_once(problems, start.problems))
    run = RunConfig(
        train=_with_seed(train, start, notes),
        sources={key: given[key].where if key in given else "default" for key in annotations_of(TrainConfig)},
        model=start.model,
        resume=start.resume,
        ema_model=start.ema_model,
        components=optimizers.components,
        freezing=optimizers.freezing,
        grad_scaler_tweaks=optimizers.grad_scaler_tweaks,
        samples=samples,
        validation=validation,
        settings_file=settings_file(config_file, document, train, given, notes),
        notes=(*notes, *resolver.notes, *start.notes, *sample_notes),
        overridden=_overridden(flags, document, given),
    )
    return replace(run, notes=(*run.notes, *change_notes(run)))


def _overridden(flags: Mapping[str, str], document: Document | None, given: Mapping[str, Given]) -> dict[str, Given]:
    """The keys that the file sets to something else than a flag."""
    of_file = given_values({}, document)
    return {
        key: of_file[key]
        for key in flags
        if key in of_file and (key not in given or given[key].value != of_file[key].value)
    }


def load_cache_dir(flags: Mapping[str, str], config_file: str | None) -> Path:
    """The cache folder that a run with these settings has; whatever else they say is not looked at.

    Raises:
        ConfigError: the file cannot be read, or names a folder wrongly.
    """
    problems: list[Problem] = []
    document, _ = _read_settings(flags, Path(config_file) if config_file else None, problems)
    given = {key: value for key, value in given_values(flags, document).items() if key in ("cache_dir", "logdir")}
    train, found, _ = train_config(given)
    if problems or found:
        raise ConfigError([*problems, *found])
    folder, message = output_path(_cache_dir(train))
    if message:
        raise ConfigError([Problem("", "cache_dir", message)])
    return Path(folder)


def _cache_dir(train: TrainConfig) -> str:
    return os.path.join(train.logdir, "cache") if train.cache_dir is None else train.cache_dir


def _with_seed(train: TrainConfig, start: Start, notes: list[str]) -> TrainConfig:
    """The settings with a seed: where it is -1, that of the run that goes on, or a new one."""
    if train.seed != -1:
        return train
    if start.resume:
        seed = start.resume.run["train"]["seed"]
        notes.append(f"seed -1: the run goes on with its own, {seed}")
    else:
        seed = secrets.randbelow(2**32)
        notes.append(f"seed -1: each start draws another; this one is {seed}")
    return replace(train, seed=seed)


def _read_settings(
    flags: Mapping[str, str], config_file: Path | None, problems: list[Problem]
) -> tuple[Document | None, Record | None]:
    """train.json; or the sections of a run.json, or of a checkpoint that a flag alone says to resume."""
    document = (
        recorded_configuration(flags) if config_file is None and "resume" in flags else _read(config_file, problems)
    )
    return read_settings(document)


def _read(path: Path | None, problems: list[Problem]) -> Document | None:
    if path is None:
        return None
    try:
        return read_json_object(path, duplicates=problems)
    except ConfigError as error:
        problems += error.problems
        return None


def _each_once(problems: Sequence[Problem], of_model: Sequence[Problem]) -> list[Problem]:
    """The first problem of each key, which the others follow from; but all of the model's, which has many files."""
    firsts = {(p.where, p.key): p for p in reversed(problems) if p not in of_model}
    return [*reversed(firsts.values()), *(p for p in problems if p in of_model)]


def _overrides(given: Mapping[str, Given], problems: list[Problem]) -> dict[str, Given]:
    """The keys that compete with optimizer.json's, without those that have a problem of their own."""
    wrong = {(p.where, p.key) for p in problems}
    return {k: given[k] for k in ("lr", *SCHEDULE_KEYS) if k in given and (given[k].where, given[k].key) not in wrong}


def _input_path(
    given: Mapping[str, Given], train: TrainConfig, key: str, folder: Path
) -> tuple[Path | None, list[Problem]]:
    """Find an input file: beside the file that names it, else in the current directory. A default may be missing.

    So may a default that is spelled out, as stock files do with sample_prompts.
    """
    value = getattr(train, key)
    if value is None:
        return None, []
    path, message = find_input(value, folder)
    if path is not None and not path.is_file():
        path, message = None, f"got {show(value)}; expected a file, but {path} is none"
    if path is not None or key not in given or value == default_of(TrainConfig, key):
        return path, []
    return None, [Problem(given[key].where, given[key].key, message)]


def _samples(
    given: dict[str, Given], train: TrainConfig, folder: Path, recorded: Document | None
) -> tuple[TrainConfig, SampleSettings, list[Problem], list[str]]:
    """The sample pictures: of a run.json or a file of prompts; without either, captions of the training data.

    Where the file of prompts has the steps between them, `given` has them afterwards as well.
    """
    if recorded:
        return train, *parse_sample_settings(recorded), []
    path, problems = _input_path(given, train, "sample_prompts", folder)
    if path is None:
        captions = (SamplePrompt(random_caption=True, seed=SampleSettings().seed + number) for number in range(3))
        return train, SampleSettings(samples=tuple(captions)), problems, []
    settings, problems = read_sample_prompts(path)
    if settings is None or settings.generate_samples_every_n_steps is None:
        return train, settings or SampleSettings(), problems, []
    every, own = settings.generate_samples_every_n_steps, given.get("sample_steps")
    of_file = Given(every, path.name, "generate_samples_every_n_steps")
    differs = own is not None and train.sample_steps != every
    if own and own.where.startswith("--"):
        return train, settings, problems, [f"{own} overrides {of_file}"] * differs
    given["sample_steps"] = of_file
    return replace(train, sample_steps=every), settings, problems, [f"{of_file} overrides {own}"] * differs


def _validation(
    given: Mapping[str, Given],
    train: TrainConfig,
    folder: Path,
    recorded: Document | None,
    problems: list[Problem],
    notes: list[str],
) -> Validation | None:
    """The validation of a run.json or of the file that validation_config names; adds to `problems` and `notes`."""
    path, found = _input_path(given, train, "validation_config", folder)
    problems += found
    document = recorded or _read(path, problems)
    if document is None:
        return None
    validation, found, more = parse_validation(document, path.parent if path else folder)
    if validation and validation.config.keep_best_ckpt and train.save_nothing:
        more.append(f"{validation.sources['keep_best_ckpt']}: keep_best_ckpt has no effect: save_nothing is set")
    problems += found
    notes += more
    return validation


def _resolved_paths(
    train: TrainConfig, given: Mapping[str, Given], folder: Path, to_train: bool
) -> tuple[TrainConfig, list[Problem]]:
    """Absolute paths of the data and of the folders that are written to; nothing is created here."""
    problems = []

    def problem(key: str, message: str) -> None:
        origin = given.get(key, Given(None, "", key))
        problems.append(Problem(origin.where, origin.key, message))

    data_root, message = find_input(train.data_root, folder)
    if data_root is None:
        if to_train:
            problem("data_root", message)
    elif not data_root.is_dir():
        problem("data_root", f"got {show(train.data_root)}; expected a folder, but {data_root} is none")
    outputs: dict[str, Any] = {"logdir": train.logdir, "cache_dir": _cache_dir(train)}
    if train.save_ckpt_dir is not None:
        outputs["save_ckpt_dir"] = train.save_ckpt_dir
    for key, value in outputs.items():
        outputs[key], message = output_path(value)
        if message and (key in given or key == "logdir"):  # else it follows from logdir's
            problem(key, message)
    return replace(train, data_root=str(data_root or train.data_root), **outputs), problems
