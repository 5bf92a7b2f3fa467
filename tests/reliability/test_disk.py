"""A disk that is full, read-only or failing: training goes on, what was saved stays whole, and it is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from ed_train.models.atomic import check_files, read_manifest
from reliability.conftest import EVERY_STEP
from reliability.driver import Runner, arguments
from reliability.others import own_world
from reliability.sabotage import (
    become_nobody,
    close_reader_at_step,
    fill_disk,
    full_disk,
    full_disk_at_step,
    full_disk_for_samples_and_schedule,
    read_only_checkpoints,
    write_while_training_waits,
)
from safetensors.torch import load_file
from train.resuming import WEIGHTS, assert_equal_runs, losses

FILES = [
    "diffusion_pytorch_model.safetensors", "config.json", "model.safetensors", "vocab.json", "merges.txt",
    "tokenizer.json", "scheduler_config.json", "model_index.json", "training_state.pt", "optimizer_unet.pt",
    "optimizer_te.pt", "manifest.json",
]  # fmt: skip
FAST = {"diffusion_pytorch_model.safetensors", "vocab.json", "optimizer_unet.pt", "manifest.json"}
KEEP = {"save_optimizer": True}


def steps_of(runner: Runner) -> list[int]:
    """The steps of the checkpoints, each of which has to be whole."""
    steps = []
    for checkpoint in runner.checkpoints:
        manifest = read_manifest(checkpoint)
        check_files(checkpoint, manifest)
        steps.append(manifest["step"])
    return sorted(steps)


def leftovers(runner: Runner) -> list[Path]:
    return list(Path(str(runner.settings["logdir"])).glob("*/ckpts/.*.partial*"))


@pytest.mark.parametrize("file", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FILES])
def test_disk_full_in_each_file(file: str, runner: Runner, undisturbed: Callable[..., Path]) -> None:
    output = runner.run(write_while_training_waits, partial(fill_disk, file, (1,)), **EVERY_STEP, **KEEP)
    assert "gs00002 was not saved: " in output
    assert "; training goes on\n" in output
    assert steps_of(runner) == [1, 3, 4, 5, 6, 7, 8]
    assert leftovers(runner) == []
    assert_equal_runs(undisturbed(**KEEP), runner.last)


def test_the_run_stops_after_three_failed_saves_in_a_row(runner: Runner, undisturbed: Callable[..., Path]) -> None:
    fail = partial(fill_disk, "optimizer_te.pt", (1, 2, 3))
    output = runner.run(fail, **EVERY_STEP, **KEEP, expect=1)
    assert output.count("warning: ") == 2
    assert "after 3 failed saves in a row: " in output.splitlines()[-1]
    assert steps_of(runner) == [1]
    assert "goes on at step 1, " in runner.run(resume="latest")
    assert_equal_runs(undisturbed(**KEEP), runner.last)


@pytest.mark.slow
def test_failed_saves_count_only_in_a_row(runner: Runner) -> None:
    output = runner.run(partial(fill_disk, "model_index.json", (1, 2, 4, 5)), **EVERY_STEP, **KEEP)
    assert output.count("was not saved: ") == 4
    assert steps_of(runner) == [1, 4, 7, 8]


@pytest.mark.slow
def test_a_failed_save_at_the_end_ends_with_status_1(runner: Runner, undisturbed: Callable[..., Path]) -> None:
    output = runner.run(partial(fill_disk, "manifest.json", (7,)), **EVERY_STEP, **KEEP, expect=1)
    assert output.splitlines()[-1].startswith("error: ")
    assert "last-myproj-ep02-gs00008 was not saved: File too large" in output.splitlines()[-1]
    assert steps_of(runner) == [1, 2, 3, 4, 5, 6, 7]
    runner.run(resume="latest")
    assert_equal_runs(undisturbed(**KEEP), runner.last)


def assert_equal_weights(whole: Path, other: Path) -> None:
    for name in WEIGHTS:
        before, after = load_file(whole / name), load_file(other / name)
        assert [n for n in before if not torch.equal(before[n], after[n])] == []


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"samples": [{"prompt": "a cat", "size": [64, 64]}], "num_inference_steps": 1}))
    return path


def test_disk_full_for_the_metrics(runner: Runner, undisturbed, prompts: Path) -> None:
    settings = {"sample_steps": 1, "sample_prompts": prompts, **EVERY_STEP, **KEEP}
    output = runner.run(partial(full_disk_at_step, 3, 10_000), **settings)  # pictures make the metrics larger than that
    assert "warning: metrics cannot be written: File too large; training goes on" in output
    assert {1, 2, 5, 6, 7, 8} <= losses(runner.last).keys(), "they are written again when there is room"
    assert_equal_weights(undisturbed(), runner.last)


def test_disk_full_for_the_printed_lines(runner: Runner, undisturbed) -> None:
    output = runner.run(partial(full_disk_at_step, 3, 500))
    assert "step 3/8" not in output
    assert "step 8/8" in output
    assert_equal_weights(undisturbed(), runner.last)


def test_a_reader_of_the_printed_lines_that_ends(runner: Runner, undisturbed) -> None:
    """Such as tee or less. Before training it ends the command, as any other."""
    output = runner.run(partial(close_reader_at_step, 3))
    assert "step 3/8" not in output
    assert output.endswith("warning: nobody reads the output any more; training goes on\n")
    assert_equal_runs(undisturbed(), runner.last)


def test_disk_full_for_samples_and_schedule(runner: Runner, undisturbed, prompts: Path) -> None:
    settings = {"sample_steps": 4, "sample_prompts": prompts, "write_schedule": True, "max_epochs": 2}
    output = runner.run(full_disk_for_samples_and_schedule, **settings)
    assert "warning: no samples of step00004: file too large; training goes on" in output
    assert "schedule.jsonl cannot be written: file too large; training goes on" in output
    assert_equal_weights(undisturbed(), runner.last)


def test_a_disk_that_is_full_from_the_start_is_an_error(runner: Runner, undisturbed) -> None:
    undisturbed()  # has filled the caches
    output = runner.run(partial(full_disk, 1500), expect=1)  # room for the lines that are printed
    assert output.splitlines()[-1].startswith("error: ")
    assert "File too large" in output.splitlines()[-1], output


def test_a_folder_that_may_not_be_written_to(world: dict[str, object], undisturbed: Callable[..., Path]) -> None:
    """EACCES, for a user who is not root; not in pytest's folders, which are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(Path(name), own_world(Path(name), world))
        output = runner.run(become_nobody, partial(read_only_checkpoints, (2, 4)), **EVERY_STEP, **KEEP)
        assert output.count("was not saved: Permission denied; training goes on") == 2
        assert steps_of(runner) == [1, 4, 5, 6, 7, 8]
        assert_equal_runs(undisturbed(**KEEP), runner.last)


def in_a_namespace(script: str, settings: dict[str, object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the tests where it may mount things; the run's checkpoints go to a disk of 45 MB."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("mounting in a namespace of one's own is not allowed here")
    disk = folder / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=45m none {disk} && exec "$@"'
    program = [sys.executable, "-c", script, *arguments({**settings, "save_ckpt_dir": disk})]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", *program]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


ON_A_DISK = """
import os, sys
from pathlib import Path
from ed_train.cli import main
from ed_train.train import checkpoint
from reliability.sabotage import run_at_step
disk = Path(sys.argv[-1].partition("=")[2])
{prepare}
status = main(sys.argv[1:])
print(sorted(path.name for path in disk.iterdir()))
sys.exit(status)
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path, world: dict[str, object]) -> None:
    """Enough room for two checkpoints; the check of the free space is told to expect nothing."""
    settings = {**world, **EVERY_STEP, **KEEP, "logdir": tmp_path / "logs"}
    run = in_a_namespace(ON_A_DISK.format(prepare="checkpoint.SPARE_DISK = -10**9"), settings, tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stdout.count("No space left on device; training goes on") == 2
    assert "after 3 failed saves in a row: " in run.stderr
    assert run.stdout.splitlines()[-1] == "['myproj-ep01-gs00001', 'myproj-ep01-gs00002']"
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_free_space_is_looked_at_first(tmp_path: Path, world: dict[str, object]) -> None:
    settings = {**world, **EVERY_STEP, "logdir": tmp_path / "logs"}
    run = in_a_namespace(ON_A_DISK.format(prepare=""), settings, tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "GB are free; free some or lower keep_last_n_ckpts; training goes on" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]", "nothing was begun"


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(tmp_path: Path, world: dict[str, object]) -> None:
    """EROFS, as when the kernel meets errors of a disk."""
    settings = {**world, **EVERY_STEP, "logdir": tmp_path / "logs"}
    prepare = "checkpoint.SPARE_DISK = -10**9; run_at_step(2, 'mount', '-o', 'remount,ro', str(disk))"
    run = in_a_namespace(ON_A_DISK.format(prepare=prepare), settings, tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "was not saved: Read-only file system" in run.stdout
    assert "after 3 failed saves in a row: " in run.stderr
    assert "Traceback" not in run.stderr
