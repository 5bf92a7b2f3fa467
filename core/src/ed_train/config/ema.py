"""The keys of the moving average: whether it is on, what overrides what, where it begins. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ed_train.config.changes import same_model
from ed_train.config.checks import off
from ed_train.config.describe import default_of, show
from ed_train.config.optimizer_keys import Given
from ed_train.config.resume import FIND_LAST, find_latest
from ed_train.config.start import Start
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import Problem
from ed_train.models.reference import check_model

EMA_RECORD = "ema"
"""The key of a checkpoint's manifest that says that the run keeps an average."""
DETAILS = (
    "ema_update_interval", "ema_device", "ema_sample_ema_model", "ema_sample_nonema_model", "ema_resume_model",
)  # fmt: skip
"""Keys that mean nothing while there is no average."""


def uses_ema(train: TrainConfig) -> bool:
    """Whether the run keeps a moving average of the weights."""
    return train.ema_decay_rate is not None or train.ema_strength_target is not None


def ema_folder(checkpoint: Path) -> Path:
    """Where the average of a checkpoint lies, as a whole diffusers folder."""
    return checkpoint.with_name(f"{checkpoint.name}-ema")


def find_ema_model(start: Start, train: TrainConfig, given: Mapping[str, Given], folder: Path) -> None:
    """Find the model whose weights the average begins with, if one is named.

    Adds it to `start`, or what is wrong with it, and lines about keys that do nothing.

    Args:
        start: where the run begins. An average in its checkpoint goes on, whatever is named.
        train: the settings, with absolute paths of the outputs.
        given: what the user set, for the problems.
        folder: of the file that names the model.
    """
    start.notes += _notes(train, given)
    value = train.ema_resume_model
    if value is None or not uses_ema(train):
        return
    origin = given["ema_resume_model"]
    if start.resume and EMA_RECORD in start.resume.manifest:
        before = start.resume.run["train"]
        if value != FIND_LAST and not same_model(value, before, "ema_resume_model", folder):
            start.notes.append(f"{origin} has no effect: the checkpoint's average goes on")
        return
    if value == FIND_LAST:
        extra = Path(train.save_ckpt_dir) if train.save_ckpt_dir else None
        latest, _ = find_latest(Path(train.logdir), extra, train.project_name, verify=False)
        if latest is None or not ema_folder(latest.checkpoint).is_dir():
            reason = f"project {show(train.project_name)} has no checkpoint with an average in {train.logdir}"
            start.notes.append(f"{origin}: {reason}; the average begins with the weights")
            return
        value = str(ema_folder(latest.checkpoint))
    start.ema_model, messages = check_model(value, base=folder, model_config=None)
    start.problems += [Problem(origin.where, origin.key, message) for message in messages]


def _notes(train: TrainConfig, given: Mapping[str, Given]) -> list[str]:
    """Lines about keys that do nothing."""
    if not uses_ema(train):
        idle = [given[key] for key in DETAILS if key in given and not _unset(key, given[key])]
        listed = ", ".join(map(str, idle))
        return [f"no effect without ema_decay_rate or ema_strength_target: {listed}"] if idle else []
    if train.ema_decay_rate is not None and train.ema_strength_target is not None:
        return [f"{given['ema_strength_target']} overrides {given['ema_decay_rate']}"]
    return []


def _unset(key: str, given: Given) -> bool:
    return off(given.value) or given.value == default_of(TrainConfig, key)
