"""Things that happen to a run: each function is called in its process, before the command, and prepares one of them.

They change where a system call or a library's function leads, never what the product does of its own accord.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ed_train.models import atomic, export
from ed_train.models import save as pipelines
from ed_train.train import checkpoint as checkpoints
from ed_train.train import output
from ed_train.train import train as loop
from ed_train.train.checkpoint import CheckpointWriter

CALLS: dict[str, tuple[tuple[Any, str], ...]] = {
    "mkdir": ((Path, "mkdir"),),
    "save_file": ((pipelines, "save_file"), (checkpoints, "save_file")),
    "copyfile": ((shutil, "copyfile"),),
    "write_text": ((Path, "write_text"),),
    "write_safetensors": ((export, "write_safetensors"),),
    "torch.save": ((torch, "save"),),
    "sha256": ((atomic, "file_sha256"),),
    "chmod": ((Path, "chmod"),),
    "fsync": ((os, "fsync"),),
    "rename": ((Path, "rename"),),
    "unlink": ((Path, "unlink"),),
    "rmtree": ((shutil, "rmtree"),),
}
"""What a save does, by what it calls."""
WRITES = ("save_file", "copyfile", "write_text", "torch.save", "write_safetensors")

Call = Callable[[], Any]


def at_each_call_of_a_save(save: int, then: Callable[[int, str, Call, Path | None], Any]) -> None:
    """Let ``then(number, name, call, file)`` stand in for each of `CALLS` while the run's save of that number is made.

    Saves and calls count from 0; file is what a write writes.
    """
    here = threading.local()
    done = [0]
    write = CheckpointWriter.write

    def counted_write(self: CheckpointWriter, snapshot: Any) -> Path:
        here.number = 0 if done[0] == save else None
        done[0] += 1
        try:
            return write(self, snapshot)
        finally:
            here.number = None

    def replaced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(function, *args, **kwargs)
            number = getattr(here, "number", None)
            if number is None:
                return call()
            here.number = None  # what it calls in its turn is a part of it
            try:
                return then(number, name, call, _written(name, args))
            finally:
                here.number = number + 1

        return wrapper

    CheckpointWriter.write = counted_write  # type: ignore[method-assign]
    for name, places in CALLS.items():
        for owner, attribute in places:
            setattr(owner, attribute, replaced(name, getattr(owner, attribute)))


def _written(name: str, args: tuple[Any, ...]) -> Path | None:
    if name not in WRITES:
        return None
    target = args[0] if name in ("write_text", "write_safetensors") else args[1]
    return Path(target if isinstance(target, str | Path) else target.name)


def list_calls(save: int, target: Path) -> None:
    """Write the names of the calls of a save into a file, a line each."""

    def note(number: int, name: str, call: Call, file: Path | None) -> Any:
        with target.open("a") as lines:
            lines.write(f"{name}\n")
        return call()

    at_each_call_of_a_save(save, note)


def kill_in_save(save: int, call: int, when: str) -> None:
    """Kill -9 ``before`` or ``after`` a call of a save, or when the file that it writes is ``half`` there."""

    def kill(number: int, name: str, do: Call, file: Path | None) -> Any:
        if number != call:
            return do()
        try:
            if when != "before":
                do()
            if when == "half" and file:
                os.truncate(file, file.stat().st_size // 2)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    at_each_call_of_a_save(save, kill)


def fill_disk(file: str, saves: tuple[int, ...], share: float = 0.5) -> None:
    """Let the disk be full, by a limit on the size of files, when a file of that name is half written.

    Args:
        file: its name.
        saves: the saves in which this happens, from 0.
        share: how much of it there is room for.
    """
    sizes: dict[str, int] = {}
    for save in range(max(saves) + 1):

        def limited(number: int, name: str, do: Call, path: Path | None, full: bool = save in saves) -> Any:
            if path is None or path.name != file:
                return do()
            if not full:
                result = do()
                sizes[file] = path.stat().st_size
                return result
            with file_size_limit(int(share * sizes[file])):
                return do()

        at_each_call_of_a_save(save, limited)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A block in which no file can grow beyond so many bytes: the error is that of a full disk, but for its name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def after_step(step: int, then: Callable[[Any], None]) -> None:
    """Call ``then(session)`` when a step has been taken and counted, before anybody asks about signals."""
    original = loop.after_step

    def wrapper(session: Any, *rest: Any) -> bool:
        if session.step + 1 == step:
            then(session)
        return original(session, *rest)

    loop.after_step = wrapper


def write_while_training_waits() -> None:
    """Let saves not go on in the background, as on a machine with little memory."""
    output.fits_in_memory = lambda size: False  # type: ignore[attr-defined]


def full_disk_at_step(step: int, size: int) -> None:
    """From this step on no file can grow beyond so many bytes, for as long as the step's records are written."""
    original = loop.after_step

    def limited(session: Any, *rest: Any) -> bool:
        if session.step + 1 != step:
            return original(session, *rest)
        with file_size_limit(size):
            return original(session, *rest)

    loop.after_step = limited


def full_disk_for_samples_and_schedule() -> None:
    """No room for what the run's output writes besides checkpoints."""

    def limited(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with file_size_limit(100):
                return function(*args, **kwargs)

        return wrapper

    for name in ("save_samples", "write_atomic"):
        setattr(output, name, limited(getattr(output, name)))


def full_disk(size: int) -> None:
    """From the start no file can grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def read_only_checkpoints(steps: tuple[int, int]) -> None:
    """Between these steps nobody may write to the folder of the checkpoints."""
    for step, mode in zip(steps, (0o555, 0o755), strict=True):
        after_step(step, functools.partial(_change_mode, mode))


def _change_mode(mode: int, session: Any) -> None:
    while session.output.writer.busy:
        time.sleep(0.001)
    session.output.writer.folder.chmod(mode)


def become_nobody() -> None:
    """Root may write everywhere."""
    "".encode("utf-8-sig")  # a part of Python that is loaded when needed, from where others may not read
    if os.geteuid() == 0:
        os.setuid(65534)


def close_reader_at_step(step: int) -> None:
    """Let standard output lead to a pipe that nobody reads, before a step's line is printed."""

    def close(_: Any) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    after_step(step, close)


def run_at_step(step: int, *command: str) -> None:
    """Run a command after a step."""
    after_step(step, lambda _: subprocess.run(command, check=True))


def list_pictures(target: Path) -> None:
    """Write a line for each step: its number, and the pictures that it trained on."""
    original = loop.train_step

    def listed(session: Any, window: Any) -> Any:
        result = original(session, window)
        pictures = [str(file) for batch in window for file in batch.images]
        with target.open("a") as lines:
            lines.write(json.dumps([session.step + 1, pictures]) + "\n")
        return result

    loop.train_step = listed


def kill_after_step(step: int) -> None:
    """Kill -9 when a step has been taken and what was to be saved is saved."""

    def kill(session: Any) -> None:
        while session.output.writer.busy:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    after_step(step + 1, kill)


def remove_after_step(step: int, folder: str) -> None:
    """Remove a folder when a step has been taken and what was to be saved is saved."""
    _after_save(step, lambda: shutil.rmtree(folder))


def damage_after_step(step: int, file: Path) -> None:
    """Cut a file short at such a moment."""
    _after_save(step, lambda: os.truncate(file, 100))


def _after_save(step: int, then: Callable[[], None]) -> None:
    def wait(session: Any) -> None:
        while session.output.writer.busy:
            time.sleep(0.001)
        then()

    after_step(step + 1, wait)
