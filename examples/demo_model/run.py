"""Run ed-train as a user would, and read what its run has logged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ed_train.models.quiet import quiet_libraries


def ed_train(*arguments: str | Path) -> None:
    """Run it, its progress bars in the same terminal.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # the model is too small for threads to share
    print(f"$ OMP_NUM_THREADS={environment['OMP_NUM_THREADS']} ed-train", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ed_train", *map(str, arguments)], check=True, env=environment)


def scalars(run: Path, name: str) -> Sequence[tuple[int, float]]:
    """Step and value of everything that a run has logged under a name; empty if there is nothing."""
    with quiet_libraries():
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
    if name not in events.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in events.Scalars(name)]
