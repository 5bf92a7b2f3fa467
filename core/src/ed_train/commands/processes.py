"""Start what ``accelerate launch --cpu --num_processes N`` leaves out.

On CPUs that command starts a single process, unless it is given an MPI host file. What it hands down is only an
address for processes to meet at, so the number is read from the command itself, and torch's launcher takes this
process's place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_RANK_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def start_cpu_processes(argv: Sequence[str]) -> None:
    """Replace this process by a launcher of several, if ``accelerate launch`` was told to start several on the CPU."""
    alone = not any(name in os.environ for name in _RANK_VARIABLES)
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if not (alone and on_cpu and "MASTER_ADDR" in os.environ):
        return
    import psutil

    parent = psutil.Process().parent()
    processes = _number_of_processes(parent.cmdline() if parent else [])
    if processes > 1:
        address = ["--master_addr", os.environ["MASTER_ADDR"], "--master_port", os.environ["MASTER_PORT"]]
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *address]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "ed_train", *argv])


def _number_of_processes(command: Sequence[str]) -> int:
    for index, argument in enumerate(command):
        name, _, value = argument.partition("=")
        if name in ("--num_processes", "--num-processes"):
            text = value or "".join(command[index + 1 : index + 2])
            return int(text) if text.isdigit() else 1
    return 1
