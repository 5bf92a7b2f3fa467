"""The metrics of a run in TensorBoard's format. A full disk costs metrics, never the training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter


class EventLog:
    """The event files of one run; each part of it, where it was interrupted, has a file of its own.

    After a failure a new file is begun with the next flush, since a record that was cut short ends what can be read
    of its file.
    """

    def __init__(self, folder: Path, first_step: int, warn: Callable[[str], None]) -> None:
        """Begin a file.

        Args:
            folder: the run's.
            first_step: where the run goes on, or 0; what an earlier part of it logged beyond that does not count.
            warn: takes a line for the user.
        """
        self._folder, self._warn = folder, warn
        self._writer: SummaryWriter | None = None
        self._warned = False
        self._hook = threading.excepthook
        threading.excepthook = self._quiet
        self._open(first_step + 1 if first_step else None)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Add values by name."""
        with self._failures_said():
            for name, value in scalars.items():
                if self._writer:
                    self._writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: NDArray[Any], step: int) -> None:
        """Add a picture, uint8 [height, width, 3]."""
        with self._failures_said():
            if self._writer:
                self._writer.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Hand everything to the operating system, so that being killed does not lose it."""
        if not self._writer:
            self._open(None)
        with self._failures_said():
            if self._writer:
                self._writer.flush()

    def close(self) -> None:
        with self._failures_said():
            if self._writer:
                self._writer.close()
        threading.excepthook = self._hook

    def _open(self, purge_step: int | None) -> None:
        with self._failures_said():
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)

    @contextmanager
    def _failures_said(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            if not self._warned:
                self._warn(f"warning: metrics cannot be written: {error.strerror or error}; training goes on")
            self._warned = True

    def _quiet(self, failure: threading.ExceptHookArgs) -> None:
        """The writer's thread ends when it cannot write; the next call of the writer raises its error here."""
        if not isinstance(failure.exc_value, OSError) or type(failure.thread).__name__ != "_AsyncWriterThread":
            self._hook(failure)
