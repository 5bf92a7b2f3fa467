"""Moments of a run at which something happens to it: functions that are called in its process, before the command."""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def send(number: int, *more: float) -> None:
    """Send a signal to this process, and again after each of these pauses, in seconds."""
    os.kill(os.getpid(), number)
    for pause in more:
        time.sleep(pause)
        os.kill(os.getpid(), number)


def send_and_hang(number: int, *more: float) -> None:
    """As `send`; then whoever calls takes a minute."""
    send(number, *more)
    time.sleep(60)


def wait_for_file(reached: Path, release: Path) -> None:
    """Make one file, and wait until somebody makes the other."""
    reached.touch()
    while not release.exists():
        time.sleep(0.01)
