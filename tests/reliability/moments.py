"""Moments of a run at which something happens to it: functions that are called in its process, before the command."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ed_train.train.signals import SAME_SIGNAL_SECONDS
from reliability.sabotage import Call, at_each_call_of_a_save
from torch.optim.optimizer import register_optimizer_step_pre_hook


def before_call(place: str, number: int, then: Callable[[], Any]) -> None:
    """Call ``then()`` before a call, counted from 1, of what is at ``module:name`` or ``module:Class.name``."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = name.split(".")
    for inner in classes:
        owner = getattr(owner, inner)
    function, calls = getattr(owner, name), [0]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            then()
        return function(*args, **kwargs)

    setattr(owner, name, wrapper)


def in_optimizer_step(number: int, then: Callable[[], Any]) -> None:
    """Call ``then()`` in a step of an optimizer, counted from 1; each component's optimizer counts."""
    calls = [0]

    def hook(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            then()

    register_optimizer_step_pre_hook(hook)


def in_save(save: int, call: str, then: Callable[[], Any]) -> None:
    """Call ``then()`` when the first of the calls of that name in a save, from 0, has been made."""
    done = [False]

    def act(number: int, name: str, do: Call, file: Path | None) -> Any:
        result = do()
        if name == call and not done[0]:
            done[0] = True
            then()
        return result

    at_each_call_of_a_save(save, act)


def send(number: int) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)


def send_twice_before_a_long_call(number: int) -> None:
    """Send a signal, and at once again; then comes a call that takes longer than the two can be apart.

    Python's handlers run between two steps of the interpreter, so not before the call has returned.
    """
    began, rounds = time.monotonic(), 100_000
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
    needed = 2 * SAME_SIGNAL_SECONDS / (time.monotonic() - began)
    threading.Timer(0.01, send, (number,)).start()
    send(number)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(needed * rounds))


def send_until_it_ends(number: int, pause: float, hung: Path) -> None:
    """Send a signal again and again, as somebody does who wants the process to end; make a file if it does not."""
    for _ in range(20):
        send(number)
        time.sleep(pause)
    hung.touch()


def wait_for_file(reached: Path, release: Path) -> None:
    """Make one file, and wait until somebody makes the other."""
    reached.touch()
    while not release.exists():
        time.sleep(0.01)
