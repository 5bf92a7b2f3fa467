"""Runs of two processes, and signals to any of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from reliability.driver import arguments
from train.test_processes import free_port

SLOW_SAVES = """
import os
if "LOCAL_RANK" in os.environ:
    import time
    from ed_train.train.checkpoint import CheckpointWriter
    write = CheckpointWriter.write
    def slowly(self, snapshot):
        time.sleep(float(os.environ["SLOW_SAVES"]))
        return write(self, snapshot)
    CheckpointWriter.write = slowly
"""
"""Runs as Python starts, in the processes that train: a save takes seconds longer, as of a large model."""


class Launch:
    """``accelerate launch`` of two processes on the CPU.

    Attributes:
        log: what all of them print.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], slow_saves: float = 0) -> None:
        self.log = folder / f"launch-{len(list(folder.glob('launch-*')))}.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if slow_saves:
            (folder / "site").mkdir(exist_ok=True)
            (folder / "site" / "sitecustomize.py").write_text(SLOW_SAVES)
            environment |= {"PYTHONPATH": str(folder / "site"), "SLOW_SAVES": str(slow_saves)}
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
        command += ["--main_process_port", str(free_port()), "-m", "ed_train", *arguments(settings)]
        with self.log.open("w") as log:
            self._launcher = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self._processes: set[psutil.Process] = set()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def all_processes(self) -> set[psutil.Process]:
        """Launchers and workers, those that have ended among them."""
        if self._launcher.poll() is None:
            top = psutil.Process(self._launcher.pid)
            self._processes |= {top, *top.children(recursive=True)}
        return self._processes

    def worker(self, rank: int) -> psutil.Process:
        """The process of that rank."""
        for process in self.all_processes():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if process.environ().get("LOCAL_RANK") == str(rank):
                    return process
        raise AssertionError(f"no process of rank {rank}: {self.output}")

    def send_to_all(self, number: int) -> None:
        """As a service manager does; a launcher passes it on as well."""
        for process in self.all_processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until something that matches has been printed."""
        end = time.monotonic() + seconds
        while not re.search(text, self.output, re.MULTILINE):
            assert self._launcher.poll() is None, f"ended without printing {text}:\n{self.output}"
            assert time.monotonic() < end, f"has not printed {text}:\n{self.output}"
            time.sleep(0.01)

    def end(self, seconds: float) -> int:
        """Wait until all processes have ended, which must not take longer; returns the launcher's exit status."""
        deadline = time.monotonic() + seconds
        while (status := self._launcher.poll()) is None and time.monotonic() < deadline:
            self.all_processes()
            time.sleep(0.05)
        _, alive = psutil.wait_procs(self._processes, max(0.0, deadline - time.monotonic()))
        assert not alive, f"after {seconds} s there are still {alive}:\n{self.output}"
        assert status is not None
        return status

    def kill(self) -> None:
        """End whatever is still there."""
        for process in self.all_processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._launcher.wait()


@contextmanager
def launched(folder: Path, settings: Mapping[str, object], slow_saves: float = 0) -> Iterator[Launch]:
    """A launch of which nothing is left when the block ends."""
    launch = Launch(folder, settings, slow_saves)
    try:
        yield launch
    finally:
        launch.kill()
