"""Validation: what is held back, that the loss is the same for the same weights, and that training does not notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train.resuming import WEIGHTS, assert_equal_weights, losses

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}, "text_encoder_overrides": {"optimizer": "prodigy", "d0": 1e-3}}

SCHEDULE_FREE = {"base": {"optimizer": "schedulefree:AdamWScheduleFree", "lr": 1e-3}}
NAMES = ("val", "all of them", "train")


@pytest.fixture(autouse=True)
def two_optimizers(write_optimizer) -> None:
    write_optimizer(ADAMW)


@pytest.fixture
def validate(tmp_path: Path, flags: dict[str, str]) -> Callable[..., None]:
    """``validate(stabilize_training_loss=True)``: write a validation file and point the run's flags to it."""

    def write(**settings: Any) -> None:
        (tmp_path / "validation.json").write_text(json.dumps(settings, indent=1))
        flags["validation_config"] = str(tmp_path / "validation.json")

    return write


def checkpoint(tmp_path: Path, project: str = "myproj") -> Path:
    (folder,) = (tmp_path / "logs").glob(f"{project}_*")
    (found,) = (folder / "ckpts").glob("last-*")
    return found


def scalars(tmp_path: Path, project: str = "myproj") -> dict[str, dict[int, float]]:
    (folder,) = (tmp_path / "logs").glob(f"{project}_*")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_the_losses_are_in_tensorboard_and_in_a_line(run_cli, validate, tmp_path, photos, capsys) -> None:
    validate(
        val_split_proportion=0.25, stabilize_training_loss=True, stabilize_split_proportion=0.5, use_relative_loss=True,
        extra_manual_datasets={"all of them": str(photos)},
    )  # fmt: skip
    assert run_cli(max_epochs=2, ema_decay_rate=0.5, no_save_ckpt=True) == 0
    found = scalars(tmp_path)
    assert {tag for tag in found if tag.startswith("validation/")} == {
        f"validation/{kind}/{name}" for kind in ("loss", "loss_ema", "relative_loss") for name in NAMES
    }
    for name in NAMES:
        loss, relative = found[f"validation/loss/{name}"], found[f"validation/relative_loss/{name}"]
        assert list(loss) == [0, 3, 6], "before the first step and after each epoch, whose end is the run's once"
        assert relative == pytest.approx({step: value - loss[0] for step, value in loss.items()}, abs=1e-6)
        averaged = found[f"validation/loss_ema/{name}"]
        assert averaged[0] == loss[0]
        assert loss[6] < averaged[6] < loss[0], "the average is behind the weights, and both have learned"
    out = capsys.readouterr().out
    val = found["validation/loss/val"]
    assert f"validation: val {val[0]:.4f}, all of them" in out
    assert f"validation: val {val[6]:.4f} (best so far), all of them" in out
    assert f"; of the average: val {found['validation/loss_ema/val'][6]:.4f}, " in out
    for line in (
        ": 6 pictures in 1 size, 3 batches an epoch\nvalidation: before the first step, every epoch and at the end\n",
        "    val: 2 of the 8 pictures of data_root (0.25 of them, seed 555), which do not train\n",
        f"    all of them: 8 pictures of {photos}\n",
        "    train: 3 of the pictures that train (0.5 of them, seed 555)\n",
        "note: validation all of them: 6 of its 8 pictures are among those that train as well, e.g. ",
        "note: validation: val (2 pictures), all of them (8 pictures), train (3 pictures): few evaluations",
    ):
        assert line in out


@pytest.mark.parametrize("optimizer", [ADAMW, SCHEDULE_FREE], ids=["adamw, prodigy", "schedule-free"])
def test_training_does_not_notice(optimizer, write_optimizer, run_cli, validate, tmp_path, photos) -> None:
    write_optimizer(optimizer)
    settings = {"max_epochs": 2, "cond_dropout": 0.3, "flip_p": 0.5, "shuffle_tags": True, "save_optimizer": True}
    assert run_cli(project_name="without", **settings) == 0
    validate(
        validate_training=False, stabilize_training_loss=True, every_n_epochs=0.3, batch_size=3,
        extra_manual_datasets={"all": str(photos)},
    )  # fmt: skip
    assert run_cli(project_name="with", **settings) == 0
    assert len(scalars(tmp_path, "with")["validation/loss/all"]) == 7
    without, with_ = (checkpoint(tmp_path, name) for name in ("without", "with"))
    assert losses(without) == losses(with_) != {}
    for name in WEIGHTS:
        assert_equal_weights(without / name, with_ / name)
