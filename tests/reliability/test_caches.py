"""Caches that a run was killed in, that are damaged, or that somebody clears: no picture is lost, no bit changes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ed_train.cli import main
from reliability.driver import Runner, ended
from reliability.moments import before_call, wait_for_file
from train.resuming import assert_equal_runs

ENCODE_PICTURE = "diffusers:AutoencoderKL.encode"
MOMENTS = {
    "latents": ("ed_train.data.encode:LatentCache._encode", 2),
    "text": ("ed_train.train.text:TextConditioning._front_of", 3),
}
"""By the folder that is being filled: a call of which the results of the one before are on disk."""


def small_portions(picture: int, captions: int) -> None:
    """Encode fewer at once, and write each portion as a pack."""
    from ed_train.data import encode, store
    from ed_train.train import text

    encode._PIXELS_PER_CALL = picture
    text._ROWS = captions
    store._PACK_BYTES = 0


@pytest.mark.parametrize("kind", MOMENTS)
def test_kill_9_while_a_cache_is_filled(kind: str, runner: Runner, undisturbed, tmp_path: Path) -> None:
    runner.settings |= {"cache_dir": tmp_path / "empty"}
    place, number = MOMENTS[kind]
    runner.kill(partial(small_portions, 2 * 64 * 64, 3), partial(before_call, place, number, kill_this_process))
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "empty" / kind).glob("*.safetensors")}
    assert left
    runner.run()
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert_equal_runs(undisturbed(), runner.last)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_damaged_entries_are_made_again(runner: Runner, undisturbed, world: dict[str, object], tmp_path: Path) -> None:
    expected = undisturbed()
    shutil.copytree(str(world["cache_dir"]), tmp_path / "damaged")
    packs = sorted((tmp_path / "damaged").glob("*/*.safetensors"))
    assert [pack.parent.name for pack in packs] == ["latents", "text", "tokens"]
    for pack in packs:
        content = bytearray(pack.read_bytes())
        content[-100] ^= 1
        pack.write_bytes(content)
    output = runner.run(cache_dir=tmp_path / "damaged")
    for pack in packs:
        assert output.count(f"{pack}: entries of it are damaged; they are made again") >= 1
    assert_equal_runs(expected, runner.last)
    assert "damaged;" not in runner.run(cache_dir=tmp_path / "damaged", max_steps=1)


def test_a_cache_is_not_cleared_while_a_run_fills_it(
    runner: Runner, undisturbed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.settings |= {"cache_dir": tmp_path / "empty"}
    reached, release = tmp_path / "reached", tmp_path / "release"
    wait = partial(before_call, ENCODE_PICTURE, 3, partial(wait_for_file, reached, release))
    with ended(runner.start(partial(small_portions, 64 * 64, 8), wait)) as attempt:
        end = time.monotonic() + 60
        while not reached.exists():
            assert attempt.process.is_alive(), attempt.output
            assert time.monotonic() < end, attempt.output
            time.sleep(0.01)
        before = sorted((tmp_path / "empty").rglob("*.safetensors"))
        assert before
        assert main(["--clear-cache", f"--cache_dir={tmp_path / 'empty'}"]) == 1
        message = "a run is filling or opening this cache; nothing was removed; try again when it has begun to train"
        assert message in capsys.readouterr().err
        assert sorted((tmp_path / "empty").rglob("*.safetensors")) == before
        release.touch()
        assert attempt.status == 0, attempt.output
    assert_equal_runs(undisturbed(), runner.last)
    assert main(["--clear-cache", f"--cache_dir={tmp_path / 'empty'}"]) == 0
    assert list((tmp_path / "empty").rglob("*.safetensors")) == []
