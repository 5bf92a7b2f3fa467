"""Run programs in fresh processes that take turns of a few steps, so that each turn has a neighbour to compare with.

A machine's speed drifts over minutes, and other programs disturb it. Ratios of turns that follow each other within
seconds hardly see that; ratios of whole runs do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from timing import STARTED, TURN, WARM_UP


@dataclass
class Program:
    """A process that takes its turns.

    Attributes:
        command: its arguments, for this Python.
        turn: steps of a turn; 0: it runs to its end.
        warm_up: steps before the first turn.
        memory: its peak by the kernel's own record, in GB; of the processes that it ran, too, the largest counts alone.
    """

    command: Sequence[str]
    turn: int = 0
    warm_up: int = 1
    memory: float = 0.0
    _output: IO[str] = field(default_factory=lambda: tempfile.TemporaryFile("w+"))  # noqa: SIM115
    _process: subprocess.Popen[Any] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def go_on(self) -> bool:
        """Start it, or let it take its turn; returns when that is over: whether there will be another."""
        if self._process is None:
            settings = {TURN: str(self.turn), WARM_UP: str(self.warm_up), STARTED: str(time.time())}
            given = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
            self._process = subprocess.Popen(
                [sys.executable, *self.command],
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**given, **settings, "HF_HUB_OFFLINE": "1"},
            )
        else:
            os.kill(self.pid, signal.SIGCONT)
        _, status, usage = os.wait4(self.pid, os.WUNTRACED)
        self.memory = max(self.memory, usage.ru_maxrss * 1024 / 1e9)
        if os.WIFSTOPPED(status):
            return True
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            sys.exit(f"{' '.join(self.command)} failed:\n{self.output[-3000:]}")
        return False

    @property
    def output(self) -> str:
        """What it has printed."""
        self._output.seek(0)
        return self._output.read()

    def result(self) -> dict[str, Any]:
        """What it printed last, and its peak memory."""
        found: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return {**found, "memory": self.memory}

    def end(self) -> None:
        """End it, if it has not ended."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._process.wait()


def in_turns(programs: Mapping[str, Program]) -> dict[str, dict[str, Any]]:
    """Start all programs, one after the other, and let them take turns until all have ended; their results."""
    left = dict(programs)
    try:
        while left:
            left = {name: program for name, program in left.items() if program.go_on()}
        return {name: program.result() for name, program in programs.items()}
    finally:
        for program in programs.values():
            program.end()


def alone(command: Sequence[str]) -> dict[str, Any]:
    """Run one program to its end; its result."""
    return in_turns({"": Program(command)})[""]
