"""SIGINT and SIGTERM at any moment: the step is finished and saved, and the run goes on from there bit for bit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ed_train.models.atomic import check_files, read_manifest
from ed_train.train.signals import SAME_SIGNAL_SECONDS
from reliability.conftest import EVERY_STEP
from reliability.driver import Runner, ended
from reliability.moments import (
    before_call,
    in_optimizer_step,
    in_save,
    send,
    send_twice_before_a_long_call,
    send_until_it_ends,
    wait_for_file,
)
from train.resuming import assert_equal_runs

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
FORWARD = "ed_train.train.step:forward_loss"
DRAW = "ed_train.models.samples:_draw"
AFTER_STEP = "ed_train.train.train:after_step"
SAMPLES = {"sample_steps": 3}
PROMPTS = {"num_inference_steps": 2, "samples": [{"prompt": "a cat"}], "generate_pretrain_samples": False}

MOMENTS = {
    "the first forward pass": (partial(before_call, FORWARD, 1), 1, {}),
    "a forward pass": (partial(before_call, FORWARD, 3), 3, {}),
    "an accumulated forward pass": (partial(before_call, FORWARD, 4), 2, {"grad_accum": 3}),
    "a step of the text encoder's optimizer": (partial(in_optimizer_step, 6), 3, {}),
    "between two steps": (partial(before_call, AFTER_STEP, 4), 4, {}),
    "the loader's thread": (partial(before_call, "ed_train.data.loader:BatchLoader._prepare", 4), None, {}),
    "samples": (partial(before_call, DRAW, 1), 3, SAMPLES),
    "a save beside the training": (partial(in_save, 2, "save_file"), None, EVERY_STEP),
}
FAST = {("a forward pass", "SIGINT"), ("samples", "SIGTERM"), ("a save beside the training", "SIGTERM")}
CASES = [
    pytest.param(moment, name, marks=[] if (moment, name) in FAST else pytest.mark.slow, id=f"{moment}-{name}")
    for moment in MOMENTS
    for name in SIGNALS
]
CASES.append(pytest.param("a forward pass", "SIGHUP", id="a forward pass-SIGHUP"))


@pytest.fixture
def runner(make_runner: Callable[..., Runner]) -> Runner:
    """Its runs draw no samples before the first step."""
    runner = make_runner()
    runner.settings["sample_prompts"] = runner.folder / "prompts.json"
    (runner.folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return runner


@pytest.mark.parametrize(("moment", "name"), CASES)
def test_a_signal_lets_the_step_end_and_saves(
    moment: str, name: str, runner: Runner, undisturbed: Callable[..., Path]
) -> None:
    at, step, settings = MOMENTS[moment]
    number = getattr(signal, name)
    output = runner.run(partial(at, partial(send, number)), expect=128 + number, **settings)
    assert f"ed-train: interrupted by {name}" in output
    assert runner.checkpoints, output
    saved = runner.checkpoints[-1]
    manifest = read_manifest(saved)
    check_files(saved, manifest)
    assert manifest["step"] == step if step else 0 < manifest["step"] < 8
    assert f"trained {manifest['step']} steps" in output
    assert f"go on with: ed-train --resume {saved}\n" in output
    resumed = runner.run(resume="latest", **settings)
    assert f"goes on at step {manifest['step']}, " in resumed
    assert_equal_runs(undisturbed(**{k: v for k, v in settings.items() if k == "grad_accum"}), runner.last)


HANG_UP = """
import os, signal, sys
from ed_train.train import signals
signals.SAME_SIGNAL_SECONDS = 0
if sys.argv[1:]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with signals.StopSignals() as received, received.deferred():
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    print(received.number)
"""


@pytest.mark.parametrize(("arguments", "number"), [([], signal.SIGHUP), (["nohup"], 0)])
def test_a_terminal_that_is_closed(arguments: list[str], number: int) -> None:
    """The system and the shell both send it, and it must not end a save; a run under nohup does not hear of it."""
    done = subprocess.run([sys.executable, "-c", HANG_UP, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == f"{int(number)}\n"


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_while_pictures_are_encoded(name: str, runner: Runner, undisturbed, tmp_path: Path) -> None:
    runner.settings |= {"cache_dir": tmp_path / "empty"}
    encode = "diffusers:AutoencoderKL.encode"
    output = runner.run(partial(before_call, encode, 1, partial(send, SIGNALS[name])), expect=128 + SIGNALS[name])
    assert f"ed-train: interrupted by {name}" in output
    assert "go on with" not in output
    assert not (tmp_path / "runs" / "logs").exists()
    runner.run(resume="latest")
    assert_equal_runs(undisturbed(), runner.last)


def test_a_signal_in_the_samples_before_the_first_step(runner: Runner, undisturbed) -> None:
    (runner.folder / "prompts.json").write_text(json.dumps({**PROMPTS, "generate_pretrain_samples": True}))
    output = runner.run(partial(before_call, DRAW, 1, partial(send, signal.SIGTERM)), expect=143, **SAMPLES)
    assert "no step was taken" in output
    assert "go on with" not in output
    assert runner.checkpoints == []
    runner.run(resume="latest", **SAMPLES)
    assert_equal_runs(undisturbed(), runner.last)


@pytest.mark.parametrize("moment", ["the last samples", pytest.param("the last save", marks=pytest.mark.slow)])
def test_a_signal_when_all_steps_are_done_does_not_fail_the_run(moment: str, runner: Runner, undisturbed) -> None:
    then = partial(send, signal.SIGTERM)
    at = partial(before_call, DRAW, 1, then) if moment == "the last samples" else partial(in_save, 0, "save_file", then)
    output = runner.run(at, sample_steps=100 if moment == "the last samples" else 0)
    assert "trained 8 steps" in output
    assert "go on with" not in output
    assert_equal_runs(undisturbed(), runner.last)


def test_a_signal_that_a_launcher_passes_on_as_well_counts_once(runner: Runner) -> None:
    twice = partial(send_twice_before_a_long_call, signal.SIGINT)
    output = runner.run(partial(before_call, FORWARD, 3, twice), expect=130)
    assert f"go on with: ed-train --resume {runner.checkpoints[-1]}\n" in output
    assert runner.checkpoints[-1].name.endswith("-gs00003")


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_second_signal_leaves_at_once(name: str, runner: Runner, undisturbed, tmp_path: Path) -> None:
    again = partial(send_until_it_ends, SIGNALS[name], 1.2 * SAME_SIGNAL_SECONDS, tmp_path / "hung")
    runner.run(partial(in_save, 3, "save_file", again), expect=128 + SIGNALS[name], **EVERY_STEP)
    assert not (tmp_path / "hung").exists(), "a save that hangs was not waited for"
    found = []
    for checkpoint in runner.checkpoints:
        check_files(checkpoint, manifest := read_manifest(checkpoint), optional=list(manifest["files"]))
        found.append(manifest["step"])
    assert found == [1, 2, 3]
    resumed = runner.run(resume="latest")
    assert "goes on at step 3, " in resumed
    assert "passed over" not in resumed
    assert_equal_runs(undisturbed(), runner.last)
    assert not list(runner.last.parent.glob(".*partial*"))


def test_a_signal_to_a_run_that_saves_nothing_says_so(runner: Runner) -> None:
    stop = partial(before_call, FORWARD, 3, partial(send, signal.SIGTERM))
    output = runner.run(stop, expect=143, save_nothing=True)
    assert "nothing was saved: save_nothing is set" in output
    assert "go on with" not in output
    assert runner.checkpoints == []


@pytest.mark.slow
def test_a_run_is_not_trained_by_two_at_once(runner: Runner, undisturbed, tmp_path: Path) -> None:
    reached, release = tmp_path / "reached", tmp_path / "release"
    hold = partial(before_call, AFTER_STEP, 4, partial(wait_for_file, reached, release))

    def wait_until_held() -> None:
        end = time.monotonic() + 60
        while not reached.exists():
            assert time.monotonic() < end, runner.attempts[-1].output
            time.sleep(0.01)
        reached.unlink()

    with ended(runner.start(hold, **EVERY_STEP)) as killed:
        wait_until_held()
        refused = runner.run(resume="latest", expect=1)
        assert re.search(r"error: .* is in use by another ed-train; end that one, or begin a new run\n", refused)
        killed.signal(signal.SIGKILL)
        assert killed.status == -signal.SIGKILL
    with ended(runner.start(hold, resume="latest", **EVERY_STEP)) as first:
        wait_until_held()
        assert "is in use by another ed-train" in runner.run(resume="latest", expect=1)
        release.touch()
        assert first.status == 0, first.output
    assert_equal_runs(undisturbed(), runner.last)
