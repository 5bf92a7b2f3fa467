"""What a run goes on with: each picture as often as without an interruption, and without the files it came from."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from reliability.conftest import EVERY_STEP
from reliability.driver import Runner
from reliability.sabotage import (
    damage_after_step,
    fill_disk,
    kill_after_step,
    list_pictures,
    remove_after_step,
    write_while_training_waits,
)
from train.resuming import assert_equal_runs


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, object]:
    """Settings that draw a picture after every second step."""
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"samples": [{"prompt": "a cat", "size": [64, 64]}], "num_inference_steps": 1}))
    return {"sample_prompts": path, "sample_steps": 2}


def test_every_picture_is_trained_as_often_as_without_an_interruption(make_runner: Callable[..., Runner]) -> None:
    """Killed in the second epoch, the newest checkpoint of the first: its plan is written a second time."""
    quiet, runner = (make_runner(name, write_schedule=True, max_epochs=3) for name in ("quiet", "runs"))
    quiet.run(partial(list_pictures, quiet.folder / "pictures"))
    fail = (write_while_training_waits, partial(fill_disk, "manifest.json", (3, 4)))
    runner.kill(partial(list_pictures, runner.folder / "pictures"), *fail, partial(kill_after_step, 5), **EVERY_STEP)
    assert "goes on at step 3, " in runner.run(partial(list_pictures, runner.folder / "pictures"), resume="latest")
    assert_equal_runs(quiet.last, runner.last)
    schedules = [(r.last.parents[1] / "schedule.jsonl").read_text() for r in (quiet, runner)]
    assert schedules[0] == schedules[1]
    planned = [json.loads(line) for line in schedules[0].splitlines()]
    trained = [dict(map(json.loads, (r.folder / "pictures").read_text().splitlines())) for r in (quiet, runner)]
    assert trained[0] == trained[1], "the last time that each step was taken"
    for epoch in range(3):
        wanted = Counter(s["image"] for batch in planned if batch["epoch"] == epoch for s in batch["samples"])
        assert len(wanted) == 8
        assert Counter(image for step in range(4) for image in trained[1][4 * epoch + step + 1]) == wanted


def test_a_run_outlives_the_checkpoint_that_it_went_on_from(runner: Runner, undisturbed, samples) -> None:
    keep = {"keep_last_n_ckpts": 1, **EVERY_STEP, **samples}
    runner.kill(partial(kill_after_step, 3), **keep)
    (source,) = runner.checkpoints
    output = runner.run(resume="latest", **keep)
    assert "warning" not in output
    assert output.count("\nsamples ") == 3
    assert not source.exists()
    assert runner.checkpoints == [runner.last]
    assert_equal_runs(undisturbed(), runner.last)


def test_a_run_outlives_the_model_that_it_began_with(
    runner: Runner, undisturbed: Callable[..., Path], samples: dict[str, object], micro_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(micro_model, tmp_path / "model")
    gone = partial(remove_after_step, 3, str(tmp_path / "model"))
    output = runner.run(gone, resume_ckpt=tmp_path / "model", **EVERY_STEP, **samples)
    assert "warning" not in output
    assert_equal_runs(undisturbed(), runner.last)
    runner.run(resume=runner.last, max_epochs=3)


def test_a_model_that_is_gone_before_the_first_save(
    runner: Runner, samples: dict[str, object], micro_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(micro_model, tmp_path / "model")
    gone = partial(remove_after_step, 1, str(tmp_path / "model"))
    output = runner.run(gone, resume_ckpt=tmp_path / "model", expect=1, **samples)
    assert output.count("warning: no samples of step") == 3
    last = output.splitlines()[-1]
    assert last.startswith("error: no checkpoint was saved: ")
    assert str(tmp_path / "model") in last


@pytest.mark.parametrize("saved", [False, True], ids=["before a save", "after a save"])
@pytest.mark.parametrize(
    "file",
    ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "scheduler/scheduler_config.json"],
)
def test_a_model_that_is_damaged_meanwhile_is_not_taken_over(
    file: str, saved: bool, runner: Runner, micro_model: Path, tmp_path: Path
) -> None:
    """A checkpoint with half of a VAE could not be loaded; an older one has all of it."""
    shutil.copytree(micro_model, tmp_path / "model")
    damage = partial(damage_after_step, 2, tmp_path / "model" / file)
    settings = {"resume_ckpt": tmp_path / "model", "disable_textenc_training": True}
    settings |= {"max_steps": 4, **(EVERY_STEP if saved else {})}
    output = runner.run(damage, expect=0 if saved else 1, **settings)
    if saved:
        assert "warning" not in output
        runner.run(resume=runner.last, disable_textenc_training=True, max_steps=5)
    else:
        assert output.splitlines()[-1].startswith("error: no checkpoint was saved: ")
        assert str(tmp_path / "model" / Path(file).parent) in output.splitlines()[-1]
        assert runner.checkpoints == []
