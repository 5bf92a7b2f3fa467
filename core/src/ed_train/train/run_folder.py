"""Make the folder of a run, and keep other processes out of it."""

from __future__ import annotations

import itertools
from pathlib import Path

from filelock import FileLock, Timeout

from ed_train.errors import EdTrainError


def new_folder(parent: Path, name: str) -> Path:
    """Make a run's folder, with -2, -3, ... behind its name where there is one already. Raises EdTrainError."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise EdTrainError(f"logdir: the run's folder {parent / name} cannot be made: {error.strerror}") from error
    raise AssertionError("itertools.count never ends")


def locked(folder: Path) -> FileLock:
    """Take a run's folder for this process; the lock goes with the process, however it ends."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise EdTrainError(f"{folder} is in use by another ed-train; end that one, or begin a new run") from None
    except OSError as error:
        raise EdTrainError(f"the run's folder {folder} cannot be written to: {error.strerror}") from error
    return lock
