"""Run the real command in processes that may be killed, at little cost: each is forked from one that is warm."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

TIMEOUT = 120.0


@cache
def forks() -> Any:
    """A process that has everything imported and forks for each run."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["reliability.child"])
    before = os.environ.get("PYTHONPATH")
    own = str(Path(__file__).parents[1])  # Python 3.11's server preloads before it has sys.path
    os.environ["PYTHONPATH"] = os.pathsep.join([before, own] if before else [own])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def arguments(settings: Mapping[str, object]) -> list[str]:
    """The flags of these settings; those that are None are left out."""
    return [f"--{key}={value}" for key, value in settings.items() if value is not None]


@dataclass
class Attempt:
    """One process that trains, or tried to.

    Attributes:
        process: it.
        log: its standard output and error.
    """

    process: Any
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def status(self) -> int:
        """Exit status; minus the signal's number for one that a signal has ended. Waits for the end."""
        self.process.join(TIMEOUT)
        if self.process.exitcode is None:
            os.kill(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {TIMEOUT} s:\n{self.output}")
        return int(self.process.exitcode)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until it has printed a text that matches."""
        end = time.monotonic() + seconds
        while not re.search(text, self.output):
            assert self.process.is_alive(), f"ended without printing {text}:\n{self.output}"
            assert time.monotonic() < end, f"has not printed {text}:\n{self.output}"
            time.sleep(0.01)


class Runner:
    """Starts processes with the same settings, each with the next file of output."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder, self.settings = folder, dict(settings)
        self.attempts: list[Attempt] = []

    def start(self, *sabotage: Callable[[], None], **more: object) -> Attempt:
        """Begin a run that things happen to; returns at once."""
        from reliability import child

        log = self.folder / f"output-{len(self.attempts)}.txt"
        process = forks().Process(
            target=child.run, args=(arguments({**self.settings, **more}), sabotage, str(log)), daemon=True
        )
        process.start()
        self.attempts.append(Attempt(process, log))
        return self.attempts[-1]

    def run(self, *sabotage: Callable[[], None], expect: int | Sequence[int] = 0, **more: object) -> str:
        """Run to the end, which has to have this status; returns what it printed, which is never a traceback."""
        attempt = self.start(*sabotage, **more)
        wanted = (expect,) if isinstance(expect, int) else expect
        assert attempt.status in wanted, attempt.output
        assert "Traceback" not in attempt.output, attempt.output
        return attempt.output

    def kill(self, *sabotage: Callable[[], None], **more: object) -> str:
        """Run until something kills it with signal 9."""
        return self.run(*sabotage, expect=-signal.SIGKILL, **more)

    @property
    def checkpoints(self) -> list[Path]:
        """All folders under the name of a checkpoint, in the order of their steps; an average may lie beside each."""
        found = Path(str(self.settings["logdir"])).glob("*/ckpts/[!.]*")
        return sorted(found, key=lambda path: path.name.rpartition("-gs")[2])

    @property
    def last(self) -> Path:
        """The checkpoint at the end of the run."""
        (checkpoint,) = (p for p in self.checkpoints if p.name.startswith("last-") and not p.name.endswith("-ema"))
        return checkpoint


@contextmanager
def ended(attempt: Attempt) -> Iterator[Attempt]:
    """A process that is gone when the block ends."""
    try:
        yield attempt
    finally:
        attempt.process.kill()
        attempt.process.join(TIMEOUT)
