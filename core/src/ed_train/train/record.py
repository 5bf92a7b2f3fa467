"""Write ``run.json``: what a run was made with, and everything that repeats it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ed_train import __version__
from ed_train.config.record import configuration_of
from ed_train.config.resume import RECORD_FILE
from ed_train.config.run import RunConfig
from ed_train.models.atomic import atomic_file

if TYPE_CHECKING:
    from accelerate import Accelerator

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow", "pydantic", "pluggy")


def write_record(folder: Path, run: RunConfig, accelerator: Accelerator, precision: str, step: int) -> None:
    """Write run.json into a run's folder; ``ed-train --config FOLDER/run.json`` repeats the run.

    Where a run goes on, its run.json stays as it is, and how it goes on is written beside it with the step's number.

    Raises:
        CheckpointError: it cannot be written.
    """
    text = json.dumps(run_record(run, accelerator, precision), indent=2, ensure_ascii=False, allow_nan=False)
    target = folder / RECORD_FILE
    if target.exists():
        target = folder / f"run-from-gs{step:05d}.json"
        target.unlink(missing_ok=True)  # resumed from there a second time
    with atomic_file(target) as file:
        file.write_text(text + "\n", encoding="utf-8")


def run_record(run: RunConfig, accelerator: Accelerator, precision: str) -> dict[str, Any]:
    """The content of run.json: the configuration, and the versions and the machine that it ran with."""
    optimizers = [config.optimizer for config in run.components.values()]
    plugins = {o.distribution: o.version for o in optimizers}
    plugins |= {f.policy.distribution: f.policy.version for f in run.freezing}
    libraries = [*LIBRARIES, *(o.spec.library for o in optimizers if o.spec.library)]
    return {
        **configuration_of(run),
        "ed_train": __version__,
        "plugins": plugins,
        "libraries": {name: _version(name) for name in dict.fromkeys(libraries)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device_name(accelerator.device),
        "precision": precision,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "seed": run.train.seed,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git_commit": _git_commit(),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _git_commit() -> str | None:
    """The commit of the current directory, with ``-dirty`` if tracked files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
