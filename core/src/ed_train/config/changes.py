"""What has changed since the checkpoint that a run goes on from. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ed_train.config.checks import find_input
from ed_train.config.describe import show
from ed_train.config.optimizer_keys import Given
from ed_train.config.record import configuration_of
from ed_train.config.resume import FIND_LAST, ResumePoint
from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.config.train_keys import TrainConfig

NOT_COMPARED = {
    "resume", "resume_changed", "resume_ckpt", "model_config", "logdir", "run_name", "cache_dir", "save_ckpt_dir",
    "required_plugins", "gpuid", "wandb", "ema_resume_model",
}  # fmt: skip
"""Settings that change nothing about what is learnt, or that `idle_on_resume` speaks of."""
_BY_COMPONENT = {"base", "text_encoder_overrides"}


def changes_since(run: RunConfig) -> list[str]:
    """What is set now that was not when the checkpoint that a run goes on from was saved, as ``seed 555 -> 1``."""
    if run.resume is None:
        return []
    before, now = run.resume.run, configuration_of(run)
    lines = _differences(_flat(before["train"]), _flat(now["train"]))
    components = _components(before), _components(now)
    for name in components[0].keys() & components[1].keys():
        lines += _differences(*_comparable(components[0][name], components[1][name]), f"{name} ")
    freezing = [_flat({k: v for k, v in x["optimizer"].items() if k not in _BY_COMPONENT}) for x in (before, now)]
    lines += _differences(freezing[0], freezing[1])
    validated, validates = before.get("validation"), now["validation"]
    if validated and validates:
        lines += _differences(_flat(validated), _flat(validates), "validation ")
    elif validated or validates:
        lines.append("validation on -> off" if validated else "validation off -> on")
    drawn = _drawn(before), _drawn(now)
    return lines + (_differences(*drawn, "sample_prompts ") if all(drawn) else [])


def change_notes(run: RunConfig) -> list[str]:
    """The same as lines for the user."""
    return [f"changed since the checkpoint: {line}" for line in changes_since(run)]


def same_optimizers(run: RunConfig) -> bool:
    """Whether optimizers, their options, schedules and what is frozen are those of the checkpoint."""
    now = _flat(configuration_of(run)["optimizer"])
    return run.resume is not None and now == _flat(run.resume.run["optimizer"])


def idle_on_resume(train: TrainConfig, given: Mapping[str, Given], folder: Path, resume: ResumePoint) -> list[str]:
    """Lines about a model and places that were set to others than those of the run that goes on.

    Args:
        train: the settings, with absolute paths of the outputs.
        given: what the user set.
        folder: of the file that names the model.
        resume: the checkpoint.
    """
    before, home, notes = resume.run["train"], resume.folder, []
    if train.resume_ckpt not in (None, FIND_LAST) and not same_model(train.resume_ckpt, before, "resume_ckpt", folder):
        began = f"the run began with {before.get('resume_ckpt')}, and goes on with its checkpoint's weights"
        notes.append(f"{given['resume_ckpt']} has no effect: {began}; without resume it begins a new run")
    if train.model_config and not same_model(train.model_config, before, "model_config", folder):
        notes.append(f"{given['model_config']} has no effect: the checkpoint has the model's configuration")
    if home is None:
        return [*notes, f"the run's folder {resume.manifest['run_folder']} is gone: the run goes on in a new one"]
    named = {"run_name": train.run_name == home.name, "logdir": Path(train.logdir).resolve() == home.resolve().parent}
    for key, same in named.items():
        if key in given and not same and getattr(train, key) != before.get(key):
            notes.append(f"{given[key]} has no effect: the run goes on in its own folder, {home}")
    folders = Path(train.save_ckpt_dir or home / "ckpts"), resume.checkpoint.resolve().parent
    if folders[0].resolve() != folders[1].resolve():
        notes.append(f"checkpoints are saved in {folders[0]} from here on; those in {folders[1]} are left alone")
    return notes


def same_model(value: str, before: Mapping[str, Any], key: str, folder: Path) -> bool:
    """Whether a key that names a model is what it was, perhaps in another spelling."""
    recorded = before.get(key)
    found, _ = find_input(value, folder)
    return value == recorded or bool(
        found and isinstance(recorded, str) and found.resolve() == Path(recorded).resolve()
    )


def _drawn(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the sample pictures, as in JSON; none where no samples are drawn."""
    samples = recorded.get("sample_prompts")
    wanted = isinstance(samples, Mapping) and recorded["train"].get("sample_steps")
    return _flat(json.loads(json.dumps(samples))) if wanted else {}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{key} {show(before.get(key))} -> {show(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key.partition(".")[0] not in NOT_COMPARED
    ]


def _components(recorded: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The optimizer section of each component that trains."""
    train, optimizer = recorded["train"], recorded["optimizer"]
    if train.get("disable_unet_training"):
        return {TEXT_ENCODER: optimizer["base"]}
    if train.get("disable_textenc_training"):
        return {UNET: optimizer["base"]}
    return {UNET: optimizer["base"], TEXT_ENCODER: optimizer.get("text_encoder_overrides") or optimizer["base"]}


def _comparable(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two optimizer sections; of two optimizers only what both have, for all else follows from that."""
    one, other = _flat(before), _flat(after)
    if one["optimizer"] == other["optimizer"]:
        return one, other
    both = before.keys() & after.keys()
    return {k: v for k, v in one.items() if k in both}, {k: v for k, v in other.items() if k in both}


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects with dotted keys; tuples as the lists that JSON made of them."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
