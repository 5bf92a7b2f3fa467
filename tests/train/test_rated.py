"""Runs of a rated data set: epochs of different lengths, and everything that counts steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ed_train.config.train_keys import TrainConfig
from ed_train.train.length import count_steps
from ed_train.train.resume import Position
from train.resuming import assert_equal_runs, losses

RATED = {"rated_dataset": True, "rated_dataset_target_dropout_percent": 25, "max_epochs": 3, "save_optimizer": True}


@pytest.fixture
def ratings(photos, tmp_path, flags) -> Path:
    """Eight photos, half of which are rated 5, and the others 0."""
    folder = tmp_path / "rated"
    shutil.copytree(photos, folder)
    for number, path in enumerate(sorted(folder.glob("*.jpg"))):
        path.with_suffix(".yaml").write_text(f"rating: {5 if number % 2 else 0}\n")
    flags["data_root"] = str(folder)
    return folder


def lengths(*batches: int) -> Any:
    """Epochs with these numbers of batches."""
    return SimpleNamespace(fading=True, batches=lambda epoch: batches[epoch])


@pytest.mark.parametrize(
    ("train", "position", "expected"),
    [
        ({"max_epochs": 3}, (), (9, 3)),
        ({"max_epochs": 3, "grad_accum": 2}, (), (5, 3)),  # 2 + 2 + 1
        ({"max_epochs": 3, "max_steps": 6}, (), (6, 2)),
        ({"max_epochs": 3, "max_steps": 8}, (), (8, 3)),
        ({"max_epochs": 3}, (5, 1, 1), (9, 3)),
        ({"max_epochs": 3, "grad_accum": 2}, (3, 1, 2), (5, 3)),
        ({"max_epochs": 1}, (5, 1, 1), (5, 2)),  # it has come further than it now should
        ({"max_epochs": 3, "max_steps": 4}, (7, 2, 0), (4, 2)),
    ],
)
def test_steps_of_epochs_that_differ(train, position, expected) -> None:
    assert count_steps(TrainConfig(**train), lengths(4, 3, 2), Position(*position)) == expected


@pytest.mark.parametrize("train", [{"max_epochs": 10**9}, {"max_epochs": 10**9, "max_steps": 7}])
def test_steps_of_epochs_that_are_alike_are_counted_at_once(train) -> None:
    alike = SimpleNamespace(fading=None, batches=lambda epoch: 3)
    steps, epochs = count_steps(TrainConfig(**train), alike, Position(4, 1, 2))
    assert (steps, epochs) == ((7, 3) if "max_steps" in train else (4 + 1 + 3 * (10**9 - 2), 10**9))


def test_a_rated_run_trains_what_check_says(run_cli, ratings, tmp_path, capsys, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}})
    (tmp_path / "validation.json").write_text('{"val_split_mode": "none", "extra_manual_datasets": {"all": "rated"}}')
    run = {**RATED, "validation_config": tmp_path / "validation.json", "write_schedule": True}
    assert run_cli(**run) == 0
    out = capsys.readouterr().out
    assert "    epoch 1: 8 in 4 batches, 2: 5 in 3 batches, 3: 2 in 1 batch\n" in out
    assert "steps: 8 in 3 epochs" in out
    assert out.count("\nvalidation: all ") == 4, "before the first step and after each epoch, however long"
    (folder,) = (tmp_path / "logs").iterdir()
    schedule = [json.loads(line) for line in (folder / "schedule.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in schedule] == [0, 0, 0, 0, 1, 1, 1, 2]
    own = [sample["image"] for line in schedule if line["epoch"] for sample in line["samples"][: line["own"]]]
    good = {str(path) for path in sorted(ratings.glob("*.jpg"))[1::2]}
    assert len(own) == 7
    assert sum(image in good for image in own) == 6, "all four of five, and both of two"
    (checkpoint,) = (folder / "ckpts").iterdir()
    assert checkpoint.name == "last-myproj-ep03-gs00008"
    assert list(losses(checkpoint)) == list(range(1, 9))


@pytest.mark.slow
def test_a_rated_run_goes_on_bit_for_bit(train_and_stop: Callable[..., Path], ratings, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3, "lr_scheduler": "cosine"}})
    assert_equal_runs(train_and_stop("whole", **RATED), train_and_stop("parts", at=(4, 6), **RATED))
