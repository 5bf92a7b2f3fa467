"""Checks of train.json that a type cannot express: values that belong together, names, paths."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ed_train.config.describe import show
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import Problem
from ed_train.paths import straight

if TYPE_CHECKING:
    from ed_train.config.optimizer_keys import Given

RESOLUTION_STEP = 64
PLAIN_NAME = re.compile(r"\w[\w .+-]{0,99}\Z")
PLAIN_NAME_WORDS = "expected a name of at most 100 letters, digits, blanks and . _ + - with a letter or digit first"


def check_values(train: TrainConfig, given: Mapping[str, Given]) -> list[Problem]:
    """Problems of keys that contradict each other or need something that is not there."""
    found: list[tuple[str, str]] = []
    if train.resolution % RESOLUTION_STEP:
        nearest = max(RESOLUTION_STEP, round(train.resolution / RESOLUTION_STEP) * RESOLUTION_STEP)
        message = f"got {train.resolution}; expected a multiple of {RESOLUTION_STEP}, e.g. {nearest}"
        found.append(("resolution", message))
    if train.timestep_start >= train.timestep_end:
        limits = f"timestep_start {train.timestep_start} and timestep_end {train.timestep_end}"
        found.append(("timestep_end", f"{limits} leave nothing to train; expected start < end"))
    if train.disable_unet_training and train.disable_textenc_training:
        found.append(("disable_textenc_training", "disable_unet_training is set too: nothing is left to train"))
    if train.disable_amp and train.mixed_precision not in ("auto", "no"):
        found.append(("disable_amp", f"contradicts mixed_precision {show(train.mixed_precision)}; remove one of them"))
    if train.wandb and importlib.util.find_spec("wandb") is None:
        found.append(("wandb", "needs the package wandb, which is not installed: pip install wandb"))
    for key in ("project_name", "run_name"):
        name = getattr(train, key)
        if name is not None and not PLAIN_NAME.match(name):
            found.append((key, f"got {show(name)}; {PLAIN_NAME_WORDS}"))
    partner = {"timestep_end": "timestep_start", "disable_amp": "mixed_precision"}
    problems = []
    for key, message in found:
        origin = given.get(key) or given.get(partner.get(key, ""))
        problems.append(Problem(origin.where, origin.key, message) if origin else Problem("", key, message))
    return problems


def off(value: Any) -> bool:
    """Whether a value of a key without effect asks for nothing."""
    return value in (False, 0, "", "none", [], {}) or value is None


def find_input(value: str, folder: Path) -> tuple[Path | None, str]:
    """Look an input up from the folder of the file that names it, then from the current directory.

    Returns:
        The absolute path, or None and a message that names both places and the nearest name.
    """
    try:
        if not value:
            raise ValueError("it is empty")
        path = Path(value).expanduser()
        places = list(dict.fromkeys((folder / path).absolute() for folder in (folder, Path())))
        for place in places:
            if place.exists():
                return straight(place), ""
            if place.is_symlink():
                return None, f"got {show(value)}; {place} is a link that leads nowhere"
        names = sorted(n for place in places if place.parent.is_dir() for n in os.listdir(place.parent))
    except (OSError, ValueError, RuntimeError) as error:
        return None, f"got {show(value)}; not a usable path: {getattr(error, 'strerror', None) or error}"
    close = get_close_matches(path.name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    return None, f"got {show(value)}; not found as {' or '.join(map(str, places))}{hint}"


def output_path(value: str) -> tuple[str, str]:
    """The absolute path of a folder that is written to, and why it cannot be made or written to; empty if it can.

    Creates nothing.
    """
    if not value:
        return value, 'got ""; expected a folder'
    expanded = os.path.expanduser(value)
    if expanded.startswith("~"):
        return value, f"got {show(value)}; there is no such user; to begin a name with ~, write ./{value}"
    path = os.path.abspath(expanded)
    return path, output_problem(Path(path))


def output_problem(folder: Path) -> str:
    """Why a folder cannot be made or written to; empty if it can. Creates nothing."""
    try:
        nearest = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
    except (OSError, ValueError) as error:
        return f"got {show(str(folder))}; not a usable path: {getattr(error, 'strerror', None) or error}"
    if not nearest.exists():
        return f"got {show(str(folder))}; {nearest} is a link that leads nowhere"
    if not nearest.is_dir():
        return f"got {show(str(folder))}; expected a folder, but {nearest} is a file"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"got {show(str(folder))}; {nearest} is not writable; choose another folder"
    return ""
