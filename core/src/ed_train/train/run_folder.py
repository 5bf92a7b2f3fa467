"""Make the folder of a run, and keep other processes out of it."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ed_train.config.run import RunConfig
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import EdTrainError


@dataclass(frozen=True)
class Home:
    """The folder of a run, and the lock that keeps it for this process."""

    folder: Path
    lock: FileLock


def home_of(run: RunConfig) -> Home | None:
    """Take the folder that a resumed run goes on in, if it is there. Raises EdTrainError as `locked` does."""
    folder = run.resume.folder if run.resume else None
    return Home(folder, locked(folder)) if folder else None


def new_home(train: TrainConfig) -> Home:
    """Make the folder of a new run, under a name that no other run has, and take it.

    Raises:
        EdTrainError: it cannot be made.
    """
    folder = new_folder(Path(train.logdir), train.run_name or f"{train.project_name}_{time.strftime('%Y%m%d-%H%M%S')}")
    return Home(folder, locked(folder))


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
    """Take a run's folder for this process; the lock goes with the process, however it ends.

    Raises:
        EdTrainError: another process is training in it, or it cannot be written to.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise EdTrainError(f"{folder} is in use by another ed-train; end that one, or begin a new run") from None
    except OSError as error:
        raise EdTrainError(f"the run's folder {folder} cannot be written to: {error.strerror}") from error
    return lock
