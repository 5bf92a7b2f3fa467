"""Process time of the commands that must be instant."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

COMMANDS = {
    "bare interpreter": ["-c", "pass"],
    "ed-train --list-optimizers": ["-m", "ed_train", "--list-optimizers"],
    "ed-train with a wrong key": ["-m", "ed_train", "--lr=fast"],
}


def light_commands() -> dict[str, list[float]]:
    """Process time, user and system, in milliseconds, of eleven runs of each in turn."""
    for command in COMMANDS.values():
        process_time(command)  # compiles what is not compiled yet
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(11):
        for name, command in COMMANDS.items():
            found[name].append(process_time(command))
    return {name: sorted(times) for name, times in found.items()}


def process_time(arguments: list[str]) -> float:
    """Milliseconds of user and system time of one fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
