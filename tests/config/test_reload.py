"""train.json, read again while a run is going on: what is taken over, what is said, what a fault does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ed_train.config.load import load_config
from ed_train.config.record import configuration_of
from ed_train.config.reload import CHANGEABLE, reread
from ed_train.config.run import RunConfig
from ed_train.config.train_keys import TrainConfig

Edit = Callable[..., tuple[RunConfig, list[str]]]


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    """``edit(run, text or settings)``: write train.json anew and read it again before epoch 3."""

    def edit(run: RunConfig, content: Any) -> tuple[RunConfig, list[str]]:
        if isinstance(content, dict):
            base = {"resume_ckpt": "owner/model", "load_settings_every_epoch": True}
            content = json.dumps({**base, **content}, indent=1)
        (tmp_path / "train.json").write_text(content)
        return reread(run, 3)

    return edit


@pytest.fixture
def start(resolve) -> Callable[..., RunConfig]:
    def start(train: dict[str, Any] | None = None, **flags: str) -> RunConfig:
        run: RunConfig = resolve({"load_settings_every_epoch": True, **(train or {})}, **flags)
        return run

    return start


def test_every_key_that_may_change_is_one(start) -> None:
    assert [key for key in CHANGEABLE if key not in vars(TrainConfig())] == []


def test_changes_count_and_get_a_line_each(start, edit) -> None:
    run = start({"sample_steps": 100, "min_snr_gamma": 5, "log_step": 10})
    changed, lines = edit(run, {"sample_steps": 200, "min_snr_gamma": 5.0, "save_optimizer": True})
    assert lines == [
        "epoch 3: save_optimizer false -> true, from train.json",
        "epoch 3: sample_steps 100 -> 200, from train.json",
        "epoch 3: log_step 10 -> 25, from train.json",
    ]
    assert (changed.train.sample_steps, changed.train.log_step, changed.train.save_optimizer) == (200, 25, True)
    assert changed.sources["sample_steps"] == "train.json:4"
    assert changed.sources["log_step"] == "default"
    assert configuration_of(changed)["train"]["sample_steps"] == 200, "what checkpoints and run.json are given"
    assert reread(changed, 4) == (changed, [])


def test_a_file_that_stays_as_it_is_changes_nothing(start) -> None:
    run = start({"sample_steps": 100}, log_step="7")
    assert reread(run, 1) == (run, [])


def test_what_wins_over_the_file_goes_on_to_win(start, edit, tmp_path) -> None:
    prompts = {"generate_samples_every_n_steps": 30, "samples": [{"prompt": "a"}]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    in_file = {"sample_prompts": "prompts.json", "optimizer_in_backward": True, "optimizer_config": "optimizer.json"}
    (tmp_path / "optimizer.json").write_text('{"base": {"optimizer": "adamw"}}')
    run = start(in_file, log_step="7")
    edited = {**in_file, "log_step": 8, "sample_steps": 40, "clip_grad_norm": 1, "save_optimizer": True}
    changed, lines = edit(run, edited)
    assert lines == [
        "epoch 3: save_optimizer false -> true, from train.json",
        "epoch 3: sample_steps stays 30, although train.json says 40: "
        "generate_samples_every_n_steps=30 (prompts.json) goes over it",
        "epoch 3: log_step stays 7, although train.json says 8: --log_step 7 goes over it",
        "epoch 3: clip_grad_norm stays null, although train.json says 1: "
        "optimizer_in_backward=true (train.json:5) goes over it",
    ]
    train = changed.train
    assert (train.log_step, train.sample_steps, train.clip_grad_norm, train.save_optimizer) == (7, 30, None, True)
    assert changed.sources["log_step"] == "--log_step"
    assert edit(changed, edited)[1] == [], "each is said once"


def test_the_prompts_file_wins_although_both_said_the_same(start, edit, tmp_path) -> None:
    (tmp_path / "prompts.json").write_text('{"generate_samples_every_n_steps": 30, "samples": [{"prompt": "a"}]}')
    run = start({"sample_prompts": "prompts.json", "sample_steps": 30})
    assert run.notes == ()
    changed, (line,) = edit(run, {"sample_prompts": "prompts.json", "sample_steps": 40})
    assert "sample_steps stays 30, although train.json says 40" in line
    assert changed.train.sample_steps == 30


def test_what_cannot_change_is_named_once_per_change(start, edit) -> None:
    run = start({"lr": 1e-6, "batch_size": 2})
    changed, lines = edit(run, {"lr": 2e-6, "max_epochs": 9, "batch_size": 2})
    assert lines == [
        "epoch 3: train.json also has other values now that no run takes over: lr, max_epochs; "
        "end the run and go on with --resume latest, to use what may change then"
    ]
    assert changed.train == run.train
    assert edit(changed, {"lr": 2e-6, "max_epochs": 9, "batch_size": 2, "log_step": 3})[1] == [
        "epoch 3: log_step 25 -> 3, from train.json"
    ]
    (line,) = edit(changed, {"lr": 2e-6, "max_epochs": 9, "batch_size": 4})[1]
    assert "no run takes over: batch_size; " in line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"sample_steps": 9, "log_step": "x"}, 'train.json:5: log_step: got "x" (string); expected an integer >= 1'),
        ({"sample_steps": 9, "batch_size": 0}, "train.json:5: batch_size: got 0 (number); expected an integer >= 1"),
        ({"sample_step": 9}, "train.json:4: sample_step: unknown key; did you mean 'sample_steps'?"),
        ({"timestep_start": 900, "timestep_end": 100}, "leave nothing to train; expected start < end"),
        ("", "train.json: found an empty file"),
        ("[]", "train.json: found [] (list) at the top level"),
        ('{"log_step": 1,', "train.json:1:16: "),
        ('{"ed_train_run": 99}', "this ed-train reads format 1"),
    ],
)
def test_a_fault_anywhere_is_one_warning_and_changes_nothing(content, complaint, start, edit) -> None:
    run = start({"sample_steps": 100})
    changed, (line,) = edit(run, content)
    assert line.startswith("warning: epoch 3: all settings stay as they are: ")
    assert complaint in line
    assert line.endswith("; the next epoch reads it again")
    assert changed.train == run.train
    assert edit(changed, content)[1] == [], "it is said once"
    assert edit(changed, {"sample_steps": 9})[1] == ["epoch 3: sample_steps 100 -> 9, from train.json"]


def test_a_file_that_is_gone_is_one_warning(start, tmp_path) -> None:
    run = start()
    (tmp_path / "train.json").unlink()
    changed, (line,) = reread(run, 2)
    assert line.startswith(f"warning: epoch 2: all settings stay as they are: train.json: no such file in {tmp_path}")
    assert reread(changed, 3)[1] == []


def test_a_changed_key_that_does_nothing_gets_its_line(start, edit) -> None:
    lines = edit(start(), {"save_full_precision": True})[1]
    assert lines[1].startswith("note: save_full_precision=true (train.json:4) has no effect without save_single_file")


def test_a_flag_that_contradicts_a_new_value_makes_it_a_fault(start, edit) -> None:
    run = start(timestep_start="500")
    _, (line,) = edit(run, {"timestep_end": 400})
    assert "train.json:4: timestep_end: timestep_start 500 and timestep_end 400 leave nothing to train" in line


def test_reading_can_be_switched_off_in_the_file(start, edit) -> None:
    changed, lines = edit(start(), {"load_settings_every_epoch": False, "log_step": 3})
    assert lines[0] == "epoch 3: load_settings_every_epoch true -> false, from train.json"
    assert (changed.train.load_settings_every_epoch, changed.train.log_step) == (False, 3)


def test_a_run_json_is_read_again_as_well(start, tmp_path, registry) -> None:
    record = configuration_of(start({"sample_steps": 100, "optimizer_config": None}))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    run = load_config({}, registry, path)
    assert reread(run, 1) == (run, [])
    path.write_text(json.dumps({**record, "train": {**record["train"], "sample_steps": 9}}))
    assert reread(run, 2)[1] == ["epoch 2: sample_steps 100 -> 9, from run.json"]


def test_without_a_file_a_line_says_that_there_is_none(resolve, registry) -> None:
    resolve({})
    run = load_config({"resume_ckpt": "owner/model", "load_settings_every_epoch": "true"}, registry)
    assert (
        "--load_settings_every_epoch true has no effect without --config: there is no file to read again" in run.notes
    )
    assert run.settings_file is None
