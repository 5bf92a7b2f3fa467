"""Run the members of a comparison: each in a fresh ed-train process, one after the other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType

from ed_train.compare.folder import (
    DIVERGED,
    DONE,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    UNUSABLE,
    Place,
    prepare,
)
from ed_train.errors import printable

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_RUN_FOLDER = re.compile(r"run folder: .*[/\\]([^/\\]+)$")
_PROGRESS = re.compile(r"step \d+/\d+: |validation")
_NOT_FINITE = re.compile(r"not finite|NaN|infinite")
LAST_LINES = 20


class Stop:
    """Passes SIGINT and SIGTERM on to the process that trains, which saves and leaves; remembers them.

    Attributes:
        number: the signal that came, or 0.
        child: the process that trains.
    """

    def __init__(self) -> None:
        self.number = 0
        self.child: subprocess.Popen[str] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.child:
            self.child.send_signal(number)

    @contextmanager
    def installed(self) -> Generator[Stop]:
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_members(places: Sequence[Place], say: Progress, without: Sequence[str], stop: Stop) -> None:
    """Run whatever is not finished, in turn; a run that fails does not stop the others, a signal does.

    Args:
        places: of all members; their states change.
        say: shows progress.
        without: plugins to leave out.
        stop: its handlers are installed.
    """
    for number, place in enumerate(places, start=1):
        title = f"[{number}/{len(places)}] {place.member.label}"
        if place.state.status in FINISHED:
            say.line(f"{title}: {place.state.status} before; kept")
        elif place.state.status == UNUSABLE:
            say.line(f"{title}: not run: {place.state.reason}")
        elif not stop.number:
            _run(place, title, say, without, stop)
            say.line(f"{title}: {_outcome(place)}")


def _outcome(place: Place) -> str:
    state = place.state
    reason = f": {state.reason}" if state.reason else ""
    return f"{state.status} after {state.seconds:.0f} s{reason}"


def _run(place: Place, title: str, say: Progress, without: Sequence[str], stop: Stop) -> None:
    """One process: start it, show what it says, and judge its end."""
    began, before = time.monotonic(), place.state.seconds
    say.line(f"{title}: {'goes on' if place.state.status == INTERRUPTED else 'starts'}")
    try:
        prepare(place)
        place.state.status, place.state.reason = RUNNING, ""
        place.state.attempts += 1
        place.keep()
        lines, status = _trained(place, say.of(title), without, stop)
    except OSError as error:
        place.state.status, place.state.reason = FAILED, f"{place.folder}: {error.strerror or error}"
        return
    place.state.seconds = before + time.monotonic() - began
    place.state.status, place.state.reason = (
        (INTERRUPTED, "") if stop.number and status == -stop.number else judged(status, lines)
    )
    place.keep()


def _trained(place: Place, show: Callable[[str], None], without: Sequence[str], stop: Stop) -> tuple[list[str], int]:
    """The last lines and the exit status of ed-train. What it prints goes into a file, too."""
    command = [sys.executable, "-m", "ed_train", "--config", str(place.config)]
    command += ["--resume", "latest"] if place.state.attempts > 1 else []
    command += [part for name in without for part in ("--no-plugin", name)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    last: deque[str] = deque(maxlen=LAST_LINES)
    with place.output.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
            env=environment,
        )  # fmt: skip
        with process:
            stop.child = process
            try:
                if stop.number:  # it came before there was a child to pass it on to
                    process.send_signal(stop.number)
                for line in process.stdout or ():
                    log.write(line)
                    last.append(line.rstrip("\n"))
                    if found := _RUN_FOLDER.match(last[-1]):
                        place.state.run = found[1]
                        place.keep()
                    elif _PROGRESS.match(line):
                        show(printable(last[-1]))
            finally:
                stop.child = None
    return list(last), process.returncode


def judged(status: int, lines: Sequence[str]) -> tuple[str, str]:
    """What the end of ed-train means, and why, from its exit status and its last lines."""
    if status == 0:
        return DONE, ""
    if status in STOPPED:
        return INTERRUPTED, ""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = printable("; ".join(errors) or next((line for line in reversed(lines) if line.strip()), ""))
    if status == 1 and errors and _NOT_FINITE.search(reason):
        return DIVERGED, reason
    if status < 0:
        return FAILED, f"ended by {signal.Signals(-status).name}" + (f"; its last line: {reason}" if reason else "")
    return FAILED, reason or f"exit status {status}"


class Progress:
    """Lines for the user; in a terminal a run's progress is one line that changes."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._open = False

    def line(self, text: str) -> None:
        """Print a line that stays."""
        end = "\r\x1b[K" if self._open else ""
        print(end + text, file=sys.stderr, flush=True)
        self._open = False

    def of(self, title: str) -> Callable[[str], None]:
        """Shows what a run says."""

        def show(text: str) -> None:
            if not self.terminal:
                self.line(f"{title}: {text}")
                return
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\x1b[K{title}: {text}"[: width + 3], end="", file=sys.stderr, flush=True)
            self._open = True

        return show
