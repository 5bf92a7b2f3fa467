"""SIGINT, SIGTERM, SIGHUP: finish the step, save, leave; a second one leaves at once, unless a terminal was closed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", 0)
"""The terminal was closed, or the connection to it has ended; 0 on Windows, which has no such signal."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_SECONDS = 0.5
"""Within it a signal is the same one: service managers signal all processes, and a launcher then passes it on to its
own, milliseconds later, or more on a busy machine. Nobody presses Ctrl-C again that fast."""


class Interrupted(BaseException):
    """A signal came where there is nothing to finish first. Not an Exception, so that nothing on the way catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.interrupted_by = number


class StopSignals:
    """Remembers that a signal came; the training loop asks at the end of each step.

    Outside `deferred` blocks a signal interrupts what is running: loading, drawing samples.

    Attributes:
        number: the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._passing_on = False
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            numbers = [*STOPPING, HANGUP] if HANGUP and signal.getsignal(HANGUP) == signal.SIG_DFL else STOPPING
            self._before = {number: signal.signal(number, self._handle) for number in numbers}  # nohup ignores it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self, deferred: bool = True) -> Iterator[None]:
        """A block that a signal does not interrupt; or, with False, a block within one that it does."""
        before, self._deferred = self._deferred, deferred
        try:
            if not deferred and self.number:
                raise Interrupted(self.number)
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if number != HANGUP and not self._passing_on:  # the shell sends that again
                os._exit(128 + number)  # whatever is being written appears under its name whole or not at all
            return
        self.number, self._passing_on = number, True
        time.sleep(SAME_SIGNAL_SECONDS)  # here, since Python hears of a signal only when torch's call has returned
        self._passing_on = False
        if not self._deferred:
            raise Interrupted(number)
