"""Each single call of a save fails, and what a save may remove: the older checkpoint stays until the newer is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ed_train.config.ema import ema_folder
from ed_train.config.resume import STATE_FILE, STATE_FILES, find_latest, find_named
from ed_train.errors import CheckpointError
from ed_train.models import save as pipelines
from ed_train.models.atomic import check_files, read_manifest
from ed_train.train.checkpoint import checkpoints_of
from reliability.conftest import EVERY_STEP
from reliability.driver import Runner
from reliability.sabotage import file_size_limit
from reliability.small import RUN_ID, STATES, save, snapshot, writer
from train.resuming import assert_equal_runs

CALLS: dict[str, tuple[Any, str]] = {
    "mkdir": (Path, "mkdir"),
    "save_file": (pipelines, "save_file"),
    "copyfile": (shutil, "copyfile"),
    "write_text": (Path, "write_text"),
    "torch.save": (torch, "save"),
    "open": (Path, "open"),
    "chmod": (Path, "chmod"),
    "fsync": (os, "fsync"),
    "rename": (Path, "rename"),
}
"""What a save calls until it has its name."""
REASONS = {
    "mkdir": (errno.EACCES, "Permission denied"),
    "copyfile": (errno.ENOSPC, "No space left on device"),
    "write_text": (errno.EROFS, "Read-only file system"),
}
EIO = (errno.EIO, "Input/output error")


@pytest.fixture
def ckpts(tmp_path: Path) -> Path:
    """Where the checkpoints of a run in ``tmp_path / "logs"`` lie."""
    folder = tmp_path / "logs" / "run" / "ckpts"
    folder.mkdir(parents=True)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def states(checkpoint: Path) -> set[str]:
    return {name for name in STATE_FILES if (checkpoint / name).exists()}


class FailAt:
    """Stands in for a function and fails at one of its calls, counted from 0."""

    def __init__(self, function: Callable[..., Any], number: int, error: int) -> None:
        self.function, self.number, self.error, self.calls = function, number, error, 0

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.number + 1:
            raise OSError(self.error, os.strerror(self.error))
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_of_a_save_may_fail(name: str, ckpts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = save(ckpts, 1, keep=1)
    owner, attribute = CALLS[name]
    error, reason = REASONS.get(name, EIO)
    first = 1 if name == "open" else 0  # the first looks whether a crash has left an average
    for number in range(first, 1000):
        with monkeypatch.context() as patch, writer(ckpts, keep=1) as opened:
            failing = FailAt(getattr(owner, attribute), number, error)
            new = snapshot(ckpts, 2)
            patch.setattr(owner, attribute, failing)
            try:
                opened.write(new)
            except CheckpointError as problem:
                failed = str(problem)
            else:
                failed = ""
        if not failed:  # nothing that a save needs: the last calls tidy up, or there is none of that number any more
            break
        assert failed == f"{new.target} was not saved: {reason}"
        assert names(ckpts) == [old.name], number
        assert find_named(str(old), ckpts)[0], number
    assert number > first
    assert names(ckpts) == [new.target.name] if name != "rename" else names(ckpts)[-1] == new.target.name
    check_files(new.target, read_manifest(new.target))


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_full_disk_is_named_in_the_optimizers_state_too(share: float, ckpts: Path) -> None:
    (old,) = save(ckpts, 1)
    size = max(path.stat().st_size for path in old.iterdir())
    assert size == (old / "optimizer_unet.pt").stat().st_size, "that is the file that has no room"
    new = snapshot(ckpts, 2)
    with writer(ckpts) as opened, pytest.raises(CheckpointError) as caught, file_size_limit(int(share * size)):
        opened.write(new)
    assert str(caught.value).startswith(f"{new.target} was not saved: ")
    assert "File too large" in str(caught.value)
    assert names(ckpts) == [old.name]


def fail_fsync(first: int, last: int) -> None:
    """In a process of its own: let the disk fail in the saves of these numbers, from 1, by what is synced."""
    from ed_train.train.checkpoint import CheckpointWriter

    write, fsync, done = CheckpointWriter.write, os.fsync, [0]

    def counted(self: CheckpointWriter, snapshot: Any) -> Path:
        done[0] += 1
        return write(self, snapshot)

    def failing(descriptor: int) -> None:
        if first <= done[0] <= last:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    CheckpointWriter.write = counted  # type: ignore[method-assign]
    os.fsync = failing


def test_a_disk_that_fails_twice_and_then_not(runner: Runner, undisturbed: Callable[..., Path]) -> None:
    output = runner.run(partial(fail_fsync, 2, 3), **EVERY_STEP)
    assert output.count("was not saved: Input/output error; training goes on") == 2
    assert [read_manifest(path)["step"] for path in runner.checkpoints] == [1, 4, 5, 6, 7, 8]
    assert_equal_runs(undisturbed(), runner.last)


def test_a_disk_that_goes_on_to_fail(runner: Runner) -> None:
    output = runner.run(partial(fail_fsync, 2, 99), **EVERY_STEP, expect=1)
    last = output.splitlines()[-1]
    assert last.startswith("error: training stopped at step ")
    assert "after 3 failed saves in a row: " in last
    assert "was not saved: Input/output error" in last
    (checkpoint,) = runner.checkpoints
    assert names(checkpoint.parent) == [checkpoint.name]
    assert "goes on at step 1, " in runner.run(resume="latest")


# What a save removes


def test_the_older_training_state_goes_when_the_newer_is_whole(ckpts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, seen, unlink = ckpts / "myproj-ep00-gs00001", [], Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.parent == old:
            newer = ckpts / "myproj-ep00-gs00002"
            check_files(newer, read_manifest(newer))
            seen.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    save(ckpts, 1, 2)
    assert seen[0] == STATE_FILE, "without which nobody tries to go on from it"
    assert states(old) == set()
    assert states(ckpts / "myproj-ep00-gs00002") == set(STATES)
    check_files(old, read_manifest(old), optional=STATE_FILES)


class Killed(BaseException):
    """The end of the process, as far as a save is concerned."""


@pytest.mark.parametrize("number", range(6))
def test_killed_between_two_removals(number: int, ckpts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(ckpts, 1, 2, keep_states=True)
    calls = [0]

    def killed(function: Callable[..., Any], path: Path, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number + 1:
            raise Killed
        return function(path, *args, **kwargs)

    with monkeypatch.context() as patch, writer(ckpts, keep=2) as opened:
        new = snapshot(ckpts, 3)
        for name in ("rename", "unlink"):
            function = getattr(Path, name)
            patch.setattr(Path, name, lambda path, *a, _f=function, **k: killed(_f, path, *a, **k))
        with suppress(Killed):
            opened.write(new)
    point, notes = find_latest(ckpts.parents[1], None, "myproj")
    assert notes == []
    assert point
    assert point.manifest["step"] == (2 if number < 2 else 3), "the second of them is the rename of the new one"
    for path in checkpoints_of(RUN_ID, ckpts):
        check_files(path, read_manifest(path), optional=STATE_FILES)


def test_save_optimizer_keeps_every_training_state(ckpts: Path) -> None:
    assert [states(path) for path in save(ckpts, 1, 2, 3, keep_states=True)] == [set(STATES)] * 3


def test_only_whole_checkpoints_of_the_run_are_counted(ckpts: Path) -> None:
    first, cut_short, _ = save(ckpts, 1, 2, 3, keep_states=True)
    weights = cut_short / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (other,) = save(ckpts, 50, run_id="fedcba9876543210")
    (ckpts / "mine").mkdir()
    (ckpts / "mine" / "notes.txt").write_text("mine")
    others = [cut_short.name, other.name, "mine"]
    assert names(ckpts) == sorted([first.name, "myproj-ep00-gs00003", *others])
    save(ckpts, 4, keep=2)  # a writer of its own, as after a resume
    assert names(ckpts) == sorted(["myproj-ep00-gs00003", "myproj-ep00-gs00004", *others])
    save(ckpts, 5, 6, 7, keep=2)
    assert names(ckpts) == sorted(["myproj-ep00-gs00006", "myproj-ep00-gs00007", *others])
    assert states(other) == set(STATES)


def test_a_checkpoint_that_somebody_else_has_removed(ckpts: Path) -> None:
    with writer(ckpts, keep=2) as opened:
        for step in (1, 2, 3, 4):
            opened.write(snapshot(ckpts, step))
            if step == 2:
                shutil.rmtree(ckpts / "myproj-ep00-gs00001")
    assert names(ckpts) == ["myproj-ep00-gs00003", "myproj-ep00-gs00004"]
    assert not ema_folder(ckpts / "myproj-ep00-gs00003").exists()
    assert states(ckpts / "myproj-ep00-gs00003") == set()
