"""Kill -9 at any moment of a save: there is a whole checkpoint, and the run goes on from it bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from ed_train.models.atomic import check_files, is_partial, read_manifest
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference
from ed_train.models.save import weights_of
from ed_train.train.single_files import SINGLE_FILE, single_file
from make_tiny_sd import make_tiny_sd
from reliability.conftest import EVERY_STEP
from reliability.driver import TIMEOUT, Runner, forks
from reliability.sabotage import kill_in_save, list_calls
from reliability.small import snapshot, writer
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


def save_with_single_file(source: Path, folder: Path, sabotage: Callable[[], None]) -> None:
    """In a process of its own: save a model that predicts v, whose single file has a .yaml beside it."""
    sabotage()
    model = SdModel(ModelReference("folder", str(source)))
    pipeline = {
        "unet": weights_of(model.load_unet()),
        "text_encoder": weights_of(model.load_text_encoder()),
        "vae": model.copyable("vae"),
        "tokenizer": model.copyable("tokenizer"),
        "scheduler_config": model.scheduler_config(),
    }
    with writer(folder) as opened:
        opened.write(replace(snapshot(folder, 1, **{SINGLE_FILE: "half"}), pipeline=pipeline))


@pytest.mark.slow
def test_kill_9_in_a_save_with_a_single_file(tmp_path: Path) -> None:
    """In each write from the moment at which the checkpoint gets its name, and before each rename."""
    source = make_tiny_sd("micro", tmp_path / "model", sd2=True, v_prediction=True)

    def attempt(name: str, *sabotage: object) -> tuple[Path, int]:
        folder = tmp_path / name / "logs" / "run" / "ckpts"
        folder.mkdir(parents=True)
        process = forks().Process(target=save_with_single_file, args=(source, folder, partial(*sabotage)))
        process.start()
        process.join(TIMEOUT)
        return folder / "myproj-ep00-gs00001", process.exitcode

    whole, status = attempt("whole", list_calls, 0, tmp_path / "calls")
    assert status == 0
    expected = {path.name: path.read_bytes() for path in whole.parent.iterdir() if path.is_file()}
    assert sorted(expected) == [f"{whole.name}.safetensors", f"{whole.name}.yaml"]
    calls = (tmp_path / "calls").read_text().split()
    first = calls.index("rename")
    assert calls[first:].count("rename") == 3
    for call in range(first, len(calls)):
        when = {"rename": "before", "write_text": "half", "write_safetensors": "half"}.get(calls[call])
        if when is None:
            continue
        checkpoint, status = attempt(f"{call}", kill_in_save, 0, call, when)
        assert status == -signal.SIGKILL
        assert checkpoint.exists() == (call > first)
        if checkpoint.exists():
            check_files(checkpoint, read_manifest(checkpoint))
        left = [path for path in checkpoint.parent.iterdir() if path != checkpoint and not is_partial(path)]
        assert all(path.read_bytes() == expected[path.name] for path in left)
        if single_file(checkpoint) in left:
            assert len(left) == 2, "without its .yaml many programs read it wrongly"
