"""Fixtures of runs that are interrupted and go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ed_train.cli import main
from ed_train.train import train as loop


@pytest.fixture
def train_and_stop(flags, monkeypatch, tmp_path) -> Callable[..., Path]:
    """``train_and_stop(name, at=[3, 5], **settings)``: a run that gets SIGTERM in these steps and is resumed each time.

    Returns the checkpoint at the end.
    """

    def run(name: str, at: tuple[int, ...] = (), **settings: Any) -> Path:
        given = {**flags, **settings, "project_name": name}
        arguments = [f"--{key}={value}" for key, value in given.items()]
        after_step = loop.after_step
        pending = list(at)

        def stop(session: Any, *rest: Any) -> bool:
            if pending and session.step + 1 == pending[0]:
                pending.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)
            return after_step(session, *rest)

        monkeypatch.setattr(loop, "after_step", stop)
        for part in range(len(at) + 1):
            status = main([*arguments, *(["--resume=latest"] if part else [])])
            assert status == (143 if part < len(at) else 0)
        (folder,) = (tmp_path / "logs").glob(f"{name}_*")
        (checkpoint,) = (path for path in (folder / "ckpts").glob("last-*") if not path.name.endswith("-ema"))
        return checkpoint

    return run
