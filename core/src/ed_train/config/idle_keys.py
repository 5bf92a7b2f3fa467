"""Lines about keys of train.json that do nothing, or not what the user may think. Nothing is ignored without one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ed_train.config.checks import off
from ed_train.config.optimizer_keys import Given
from ed_train.config.resume import FIND_LAST
from ed_train.config.train_keys import DEAD, TrainConfig


def idle_key_notes(train: TrainConfig, given: Mapping[str, Given]) -> list[str]:
    """A line for each such key that is set.

    Args:
        train: the settings.
        given: what the user set, with its place.
    """
    notes = []
    for key, instead in DEAD.items():
        if key in given and not off(given[key].value):
            notes.append(f"{given[key]} is a dead key without effect" + (f": {instead}" if instead else ""))
    return notes + [f"{given[key]} {line}" for key, line in _lines(train) if key in given and not off(given[key].value)]


def _lines(train: TrainConfig) -> Iterator[tuple[str, str]]:
    """Keys that are set, and what to say about them."""
    if train.attn_type != "sdp":
        yield "attn_type", "has no effect: torch's own attention (sdp) is always used"
    if train.train_sampler != "ddpm":
        yield "train_sampler", "has no effect: in training all samplers add the same noise"
    if train.save_nothing:
        yield "save_nothing", "means no checkpoint of any kind: what is trained is gone when the run ends"
    if train.save_nothing or train.no_save_ckpt:
        key = "save_nothing" if train.save_nothing else "no_save_ckpt, which means checkpoint folders only"
        yield "save_single_file", f"has no effect with {key}"
    if train.save_full_precision and not train.save_single_file:
        yield "save_full_precision", "has no effect without save_single_file: checkpoint folders always are in float32"
    if train.resume is None and train.resume_ckpt != FIND_LAST:
        yield "resume_changed", "has no effect without resume"
    if train.save_every_n_epochs is None:
        yield "save_ckpts_from_n_epochs", "has no effect without save_every_n_epochs"
    percent = "rated_dataset_target_dropout_percent"
    if getattr(train, percent) != getattr(TrainConfig, percent) and not train.rated_dataset:
        yield percent, "has no effect without rated_dataset"
