"""Two processes that train together: signals to one or all of them, one that is killed, and how the run goes on."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from functools import partial

import pytest
from ed_train.models.atomic import check_files, read_manifest
from reliability.driver import Runner
from reliability.moments import before_call, send
from reliability.two_processes import Launch, launched
from train.resuming import assert_equal_runs, losses

END_SECONDS = 60
AFTER_STEP = "ed_train.train.train:after_step"
SLOW_SAVE = 3.0
"""Longer than a launcher takes to notice that a process has ended."""


def saved_step(runner: Runner, launch: Launch) -> int:
    """The step of the checkpoint that an interrupted run has saved, which is the newest and whole."""
    newest = max(runner.checkpoints, key=lambda path: read_manifest(path)["step"])
    manifest = read_manifest(newest)
    check_files(newest, manifest)
    assert f"go on with: ed-train --resume {newest}\n" in launch.output
    assert "ed-train: interrupted by SIGTERM" in launch.output
    assert_no_traceback_of_ours(launch)
    return int(manifest["step"])


def assert_no_traceback_of_ours(launch: Launch) -> None:
    """A launcher prints a traceback of its own when a process has failed, or when it gets a signal itself."""
    assert not re.search(r"/ed_train/\w+", launch.output), launch.output


@pytest.mark.slow
def test_two_processes_survive_signals_and_kills(make_runner: Callable[..., Runner]) -> None:
    settings = {"max_epochs": 20, "save_optimizer": True}
    quiet, runner = make_runner("quiet", **settings), make_runner("runs", **settings)
    with launched(quiet.folder, quiet.settings) as launch:
        assert launch.end(120) == 0, launch.output

    with launched(runner.folder, runner.settings) as launch:
        launch.wait_for(r"^step 2/40")
        launch.send_to_all(signal.SIGTERM)
        assert launch.end(END_SECONDS) != 0
    first = saved_step(runner, launch)
    stopped = runner.checkpoints[-1]

    with launched(runner.folder, {**runner.settings, "resume": "latest"}, SLOW_SAVE) as launch:
        launch.wait_for(rf"^step {first + 2}/40")
        launch.worker(0).send_signal(signal.SIGTERM)
        assert launch.end(END_SECONDS) != 0
    assert f"goes on at step {first}, " in launch.output
    second = saved_step(runner, launch)

    with launched(runner.folder, {**runner.settings, "resume": "latest"}) as launch:
        launch.wait_for(rf"^step {second + 2}/40")
        launch.worker(1).kill()
        assert launch.end(END_SECONDS) != 0
    assert_no_traceback_of_ours(launch)
    assert len(re.findall("^error: another process of this run has ended", launch.output, re.MULTILINE)) == 1

    with launched(runner.folder, {**runner.settings, "resume": "latest"}) as launch:
        assert launch.end(120) == 0, launch.output
    assert f"goes on at step {second}, " in launch.output
    assert_equal_runs(quiet.last, runner.last)

    whole = losses(runner.last)
    stop = partial(before_call, AFTER_STEP, 8, partial(send, signal.SIGTERM))
    alone = runner.run(stop, resume=stopped, batch_size=4, expect=143)  # one process, the same batches and folder
    assert f"goes on at step {first}, " in alone
    assert "the batches are not those" not in alone
    after = {int(step): float(loss) for step, loss in re.findall(r"^step (\d+)/40: loss ([\d.]+)", alone, re.MULTILINE)}
    assert list(after) == list(range(first + 1, first + 9))
    assert after[first + 1] == pytest.approx(whole[first + 1], abs=1e-4)  # as it is printed
    assert list(after.values()) == pytest.approx([whole[step] for step in after], rel=1e-2)
