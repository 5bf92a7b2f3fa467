"""``load_settings_every_epoch``: read train.json again while a run is going on, and take over what may change.

A resume reads the same file, so a run that is interrupted in an epoch goes on with the settings that it had there, as
long as nobody edits the file in between. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ed_train.config.checks import check_values
from ed_train.config.describe import show
from ed_train.config.freeze_sections import FREE_KEYS
from ed_train.config.given import given_values, read_settings, train_config
from ed_train.config.idle_keys import idle_key_notes
from ed_train.config.jsontext import Document, read_json_object
from ed_train.config.optimizer_keys import Given
from ed_train.config.run import RunConfig
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import ConfigError

RELOAD = "load_settings_every_epoch"
CHANGEABLE = (
    RELOAD, "save_every_n_epochs", "save_ckpts_from_n_epochs", "save_every_n_steps", "ckpt_every_n_minutes",
    "keep_last_n_ckpts", "save_optimizer", "save_single_file", "save_full_precision", "no_save_ckpt",
    "no_prepend_last", "write_schedule", "sample_steps", "log_step", "loss_type", "min_snr_gamma",
    "zero_frequency_noise_ratio", "pyramid_noise_discount", "embedding_perturbation", "timestep_start",
    "timestep_end", "clip_grad_norm",
)  # fmt: skip
"""Keys that nothing has been built from at the start: a run asks for their values in every step, or at every save."""


@dataclass(frozen=True)
class SettingsFile:
    """train.json as a run knows it.

    Attributes:
        path: where it is, absolute.
        values: its keys and values when it was last read.
        locked: those of `CHANGEABLE` that it does not decide, with what does: a flag, the prompts' file, another key.
        complaint: what was wrong with it when it was last read; empty if nothing was.
    """

    path: Path
    values: Mapping[str, Any]
    locked: Mapping[str, str]
    complaint: str = ""


def settings_file(
    path: Path | None, document: Document | None, train: TrainConfig, given: Mapping[str, Given], notes: list[str]
) -> SettingsFile | None:
    """The file that a run reads again before every epoch; None, with a line in `notes` if need be, where it does not.

    Args:
        path: of the file that was given with ``--config``.
        document: what it says.
        train: the settings.
        given: what the user set; what does not come from the file wins over it.
        notes: receives the line.
    """
    if not train.load_settings_every_epoch:
        return None
    if path is None or document is None:
        notes.append(f"{given[RELOAD]} has no effect without --config: there is no file to read again")
        return None
    others = {key: given[key] for key in CHANGEABLE if key in given and given[key].where != document.where(key)}
    locked = {key: str(other) for key, other in others.items()}
    if train.optimizer_in_backward:
        locked["clip_grad_norm"] = str(given["optimizer_in_backward"])
    return SettingsFile(path.absolute(), _set_values(document), locked)


def reread(run: RunConfig, epoch: int) -> tuple[RunConfig, list[str]]:
    """Read the file again.

    Args:
        run: its `settings_file` is not None.
        epoch: that is about to begin, from 1, for the lines.

    Returns:
        The run with the settings that count from now on, and a line for each change and whatever else to know.
        A file that is gone or has a fault anywhere changes nothing.
    """
    file = run.settings_file
    assert file is not None
    try:
        document, _ = read_settings(read_json_object(file.path))
        assert document is not None
        given = given_values({}, document)
        train = _merged(run.train, given, file)
    except ConfigError as error:
        complaint = "; ".join(map(str, error.problems))
        line = f"warning: epoch {epoch}: all settings stay as they are: {complaint}; the next epoch reads it again"
        return replace(run, settings_file=replace(file, complaint=complaint)), [line] * (complaint != file.complaint)
    values = _set_values(document)
    edited = {key for key in values.keys() | file.values.keys() if values.get(key) != file.values.get(key)}
    lines = list(_lines(run.train, train, edited, given, file))
    changed = {key: given[key] for key in CHANGEABLE if key in given and key in edited}
    lines += [f"note: {note}" for note in idle_key_notes(train, changed)]
    sources = {key: given[key].where if key in given else "default" for key in CHANGEABLE if key not in file.locked}
    known = replace(file, values=values, complaint="")
    return replace(run, train=train, sources={**run.sources, **sources}, settings_file=known), [
        line if line.startswith("note: ") else f"epoch {epoch}: {line}" for line in lines
    ]


def _set_values(document: Document) -> dict[str, Any]:
    return {key: value for key, value in document.value.items() if value is not None and key not in FREE_KEYS}


def _merged(before: TrainConfig, given: Mapping[str, Given], file: SettingsFile) -> TrainConfig:
    """The settings with what the file may change of them. Raises ConfigError with every problem of the file."""
    of_file, problems, _ = train_config(given)
    changes = {key: getattr(of_file, key) for key in CHANGEABLE if key not in file.locked}
    train = replace(before, **changes)
    problems = problems or check_values(train, given)
    if problems:
        raise ConfigError(problems)
    return train


def _lines(
    before: TrainConfig, after: TrainConfig, edited: set[str], given: Mapping[str, Given], file: SettingsFile
) -> list[str]:
    """What has changed, what another setting wins over, what cannot change in a run that is going on."""
    lines, name = [], file.path.name
    for key in CHANGEABLE:
        old, new = getattr(before, key), getattr(after, key)
        if key in file.locked and key in edited:
            wanted = show(given[key].value) if key in given else "its default"
            lines.append(f"{key} stays {show(old)}, although {name} says {wanted}: {file.locked[key]} goes over it")
        elif old != new:
            lines.append(f"{key} {show(old)} -> {show(new)}, from {name}")
    if fixed := sorted(edited - set(CHANGEABLE)):
        advice = "end the run and go on with --resume latest, to use what may change then"
        lines.append(f"{name} also has other values now that no run takes over: {', '.join(fixed)}; {advice}")
    return lines
