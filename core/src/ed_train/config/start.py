"""Where a run begins: from a model, or from a checkpoint of a run that was interrupted. Never imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ed_train.config.changes import idle_on_resume
from ed_train.config.describe import show
from ed_train.config.jsontext import Document
from ed_train.config.optimizer_keys import Given
from ed_train.config.resume import FIND_LAST, LATEST, ResumePoint, find_latest, find_named
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import Problem
from ed_train.models.reference import ModelReference, check_model

MANIFEST_FILE = "manifest.json"


@dataclass
class Start:
    """What was found.

    Attributes:
        model: where the weights come from; None if there are problems.
        resume: the checkpoint, where a run goes on.
        ema_model: where the moving average comes from, if not from one of these.
    """

    model: ModelReference | None
    resume: ResumePoint | None
    problems: list[Problem]
    notes: list[str]
    ema_model: ModelReference | None = None


def find_start(train: TrainConfig, given: Mapping[str, Given], folder: Path, *, weights: bool = True) -> Start:
    """Find the checkpoint or the model that a run begins with.

    Args:
        train: the settings, with absolute paths of the outputs.
        given: what the user set, for the problems.
        folder: of the file that names them.
        weights: whether the model's weights must be there.
    """
    findlast = train.resume_ckpt == FIND_LAST
    if train.resume is None and not findlast:
        return _from_model(train, given, folder, weights)
    key = "resume_ckpt" if findlast and train.resume is None else "resume"
    origin = given[key]
    if train.resume in (LATEST, None):
        extra = Path(train.save_ckpt_dir) if train.save_ckpt_dir else None
        resume, notes = find_latest(Path(train.logdir), extra, train.project_name)
        if resume is None and (findlast or train.resume_ckpt is None):
            reason = f"no checkpoint of project {show(train.project_name)} with training state in {train.logdir}"
            message = "; ".join([f"{show(getattr(train, key))}: {reason}", *notes, "name a model as resume_ckpt"])
            return Start(None, None, [Problem(origin.where, origin.key, message)], [])
        if resume is None:
            start = _from_model(train, given, folder, weights)
            start.notes += [f"{origin}: there is nothing to go on with in {train.logdir}; a new run begins", *notes]
            return start
    else:
        resume, message = find_named(str(train.resume), folder)
        notes = []
        if resume is None:
            return Start(None, None, [Problem(origin.where, origin.key, message)], [])
    notes += idle_on_resume(train, given, folder, resume)
    reference, messages = check_model(str(resume.checkpoint), base=folder, model_config=None)
    return Start(reference, resume, [Problem(origin.where, origin.key, m) for m in messages], notes)


def recorded_configuration(flags: Mapping[str, str]) -> Document | None:
    """What stands in for train.json where ``--resume`` is given without one: the checkpoint's own configuration.

    Returns:
        It, or None if there is no such checkpoint, which `find_start` then says.
    """
    if flags["resume"] == LATEST:
        logdir = os.path.abspath(os.path.expanduser(flags.get("logdir", TrainConfig.logdir)))
        extra = Path(flags["save_ckpt_dir"]) if "save_ckpt_dir" in flags else None
        resume, _ = find_latest(Path(logdir), extra, flags.get("project_name"), verify=False)
    else:
        resume, _ = find_named(flags["resume"], Path(), verify=False)
    return Document(resume.checkpoint / MANIFEST_FILE, dict(resume.run)) if resume else None


def _from_model(train: TrainConfig, given: Mapping[str, Given], folder: Path, weights: bool) -> Start:
    if train.resume_ckpt is None:
        message = "not set; name the model to start from: a diffusers folder, a hub id such as owner/name, or one file"
        return Start(None, None, [Problem("", "resume_ckpt", message)], [])
    origin = given["resume_ckpt"]
    reference, messages = check_model(train.resume_ckpt, base=folder, model_config=train.model_config, weights=weights)
    if reference is None:
        hint = '; did you mean "resume": "latest"?' if train.resume_ckpt.lower() in (LATEST, FIND_LAST) else ""
        return Start(None, None, [Problem(origin.where, origin.key, f"{message}{hint}") for message in messages], [])
    return Start(reference, None, [], [f"{origin.source}: {message}" for message in messages])
