"""Kill -9 at any moment of a save: there is a whole checkpoint, and the run goes on from it bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ed_train.models.atomic import check_files, read_manifest
from reliability.conftest import EVERY_STEP
from reliability.driver import Runner
from reliability.sabotage import kill_in_save, list_calls
from train.resuming import assert_equal_runs

SAVE = 2
"""The third, of step 3: the first that removes an old checkpoint and another one's training state."""
KEEP = {"keep_last_n_ckpts": 2}

STAGES = {
    "before the folder is made": ("mkdir", 1, "before"),
    "in the UNet's weights": ("save_file", 0, "half"),
    "in the text encoder's weights": ("save_file", 1, "half"),
    "in a copied file": ("copyfile", 1, "half"),
    "in model_index.json": ("write_text", -2, "half"),
    "in the training state": ("torch.save", 0, "half"),
    "in an optimizer's state": ("torch.save", -1, "half"),
    "between the checksums": ("sha256", 3, "before"),
    "in the manifest": ("write_text", -1, "half"),
    "before the manifest is on disk": ("fsync", -8, "before"),
    "before the rename": ("rename", 0, "before"),
    "after the rename": ("rename", 0, "after"),
    "before the oldest is removed": ("rename", 1, "before"),
    "when the oldest is half removed": ("rename", 1, "after"),
    "when the oldest is removed": ("rmtree", -1, "after"),
    "between the files of an older one's state": ("unlink", -4, "after"),
    "at the very end": ("unlink", -1, "after"),
}
FAST = {"in the UNet's weights", "in the manifest", "after the rename", "when the oldest is half removed"}


@pytest.fixture(scope="session")
def calls_of_a_save(tmp_path_factory: pytest.TempPathFactory, world: dict[str, object]) -> list[str]:
    folder = tmp_path_factory.mktemp("calls")
    runner = Runner(folder, {**world, **KEEP, **EVERY_STEP, "max_steps": 4, "logdir": folder / "logs"})
    runner.run(partial(list_calls, SAVE, folder / "calls"))
    return (folder / "calls").read_text().split()


def kill_and_go_on(runner: Runner, whole: Path, call: int, when: str) -> None:
    """Kill in a save, look at what is there, go on, and compare the end."""
    runner.kill(partial(kill_in_save, SAVE, call, when), **KEEP, **EVERY_STEP)
    found = {}
    for checkpoint in runner.checkpoints:
        manifest = read_manifest(checkpoint)
        check_files(checkpoint, manifest, optional=[name for name in manifest["files"] if name.endswith(".pt")])
        found[manifest["step"]] = checkpoint
    assert set(found) in ({1, 2}, {1, 2, 3}, {2, 3})
    output = runner.run(resume="latest", **KEEP)
    assert f"goes on at step {max(found)}, " in output
    assert "passed over" not in output
    assert_equal_runs(whole, runner.last)
    folder = runner.last.parents[1]
    assert [p for p in folder.rglob(".*") if "partial" in p.name] == []
    assert len(runner.checkpoints) == 2


@pytest.mark.parametrize("stage", [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in STAGES])
def test_kill_9_in_a_save(stage: str, calls_of_a_save, runner: Runner, undisturbed: Callable[..., Path]) -> None:
    name, occurrence, when = STAGES[stage]
    call = [number for number, called in enumerate(calls_of_a_save) if called == name][occurrence]
    kill_and_go_on(runner, undisturbed(), call, when)
