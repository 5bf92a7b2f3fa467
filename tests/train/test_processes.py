"""Data-parallel training with gloo on the CPU: the same global batch gives what one process gives."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ADAMW = {
    "base": {"optimizer": "adamw", "lr": 1e-3},
    "text_encoder_overrides": {"optimizer": "prodigy"},
    "text_encoder_freezing": {"unfreeze_last_n_layers": 2},
}


def free_port() -> int:
    """A port that no other test's processes meet at, nor one that connections are given meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)  # Linux gives connections those above
        with socket.socket() as listening, suppress(OSError):
            listening.bind(("", port))
            return port


def launch(processes: int, flags: dict[str, object]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    command += ["--main_process_port", str(free_port())]
    command += ["-m", "ed_train", *(f"--{key}={value}" for key, value in flags.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"grad_accum": 3, "rated_dataset": True}], ids=["plain", "accumulated, rated"]
)
def test_two_processes_train_as_one_does(flags, write_optimizer, tmp_path: Path, settings: dict[str, object]) -> None:
    """With a random seed, which all processes must have from one of them."""
    write_optimizer(ADAMW)
    losses, weights, seed = {}, {}, "-1"
    for processes in (2, 1):
        name = f"of-{processes}"
        run = {**flags, "run_name": name, **settings, "clip_grad_norm": 0.5, "flip_p": 0.5}
        run |= {"batch_size": 4 // processes, "max_epochs": 3, "cond_dropout": 0.3, "seed": seed}
        result = launch(processes, run)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"{processes} process" in result.stdout
        seed = re.findall(r"seed (\d+)", result.stdout)[0]
        assert "Traceback" not in result.stderr
        folder = tmp_path / "logs" / name
        losses[processes] = [e.value for e in EventAccumulator(str(folder)).Reload().Scalars("loss")]
        (checkpoint,) = (folder / "ckpts").iterdir()
        weights[processes] = load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["of-1", "of-2"], "only the main process writes"
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    start = load_file(Path(flags["resume_ckpt"]) / "unet" / "diffusion_pytorch_model.safetensors")
    moved = sum(float((weights[1][n] - start[n]).norm() ** 2) for n in start) ** 0.5
    apart = sum(float((weights[1][n] - weights[2][n]).norm() ** 2) for n in start) ** 0.5
    assert apart < 0.05 * moved
