"""The file that validation_config names: every value checked, every problem at once, paths, and idle keys named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ed_train.config.load import load_config
from ed_train.config.record import configuration_of
from ed_train.config.run import RunConfig
from ed_train.config.validation import TRAIN, VAL, ValidationConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def validation(resolve, tmp_path) -> Any:
    """``validation(seed=1)``: a run with such a validation file."""

    def run(text: str | None = None, **settings: Any) -> RunConfig:
        (tmp_path / "validation.json").write_text(text or json.dumps(settings, indent=1))
        return resolve({"validation_config": "validation.json"})

    return run


@pytest.fixture
def wrong(problems, tmp_path) -> Any:
    def wrong(**settings: Any) -> list[str]:
        (tmp_path / "validation.json").write_text(json.dumps(settings, indent=1))
        return problems({"validation_config": "validation.json"})

    return wrong


def test_the_example_is_read_without_a_word(resolve, tmp_path) -> None:
    shutil.copy(ROOT / "examples" / "validation.json", tmp_path)
    run = resolve({"validation_config": "validation.json"})
    assert run.notes == ()
    assert run.validation.config.names == [VAL, TRAIN]
    assert set(run.validation.sources) >= {"seed", "keep_best_ckpt", "timesteps_per_image"}
    assert run.validation.sources["seed"] == "validation.json:9"


def test_the_file_of_the_page_is_read(resolve, tmp_path) -> None:
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "validation.md").read_text(), re.DOTALL)
    (tmp_path / "pictures" / "rain").mkdir(parents=True)
    (tmp_path / "validation.json").write_text(text)
    run = resolve({"validation_config": "validation.json"})
    assert run.notes == ()
    assert run.validation.config.names == [VAL, "in the rain", TRAIN]


def test_an_empty_file_holds_15_percent_back_and_null_is_off(validation, resolve) -> None:
    assert validation(text="{}").validation.config == ValidationConfig()
    assert resolve({"validation_config": None}).validation is None


def test_every_problem_is_reported_with_its_line(wrong) -> None:
    found = wrong(
        every_n_epochs=0, val_split_mod="none", batch_size="2", documentation={"seed": "x"}, val_split_proportion=1,
    )  # fmt: skip
    assert sorted(found) == [
        "validation.json:2: every_n_epochs: got 0 (number); expected a number > 0",
        "validation.json:3: val_split_mod: unknown key; did you mean 'val_split_mode'?",
        'validation.json:4: batch_size: got "2" (string); expected an integer >= 1 or null',
        "validation.json:8: val_split_proportion: got 1 (number); expected a number > 0 and < 1",
    ]


def test_names_and_folders_of_sets_are_checked(wrong, tmp_path) -> None:
    (tmp_path / "file").touch()
    found = wrong(extra_manual_datasets={"val": "input", "a/b": "input", "dog": "inptu", "cat": "file"})
    assert [line.partition(";")[0] for line in found] == [
        'validation.json:3: extra_manual_datasets.val: "val" is the name of another set',
        'validation.json:4: extra_manual_datasets.a/b: got the name "a/b"',
        f'validation.json:5: extra_manual_datasets.dog: got "inptu"; not found as {tmp_path / "inptu"}'.partition(";")[
            0
        ],
        'validation.json:6: extra_manual_datasets.cat: got "file"',
    ]
    assert "did you mean input?" in found[2]


def test_a_manual_split_needs_a_folder(wrong, validation, tmp_path) -> None:
    assert wrong(val_split_mode="manual") == [
        'validation.json:2: val_split_mode: got "manual"; it needs val_data_root, a folder of pictures and captions'
    ]
    run = validation(val_split_mode="manual", val_data_root="input")
    assert run.validation.config.folders == {VAL: str(tmp_path / "input")}
    assert not run.validation.config.held_back


@pytest.mark.parametrize(
    ("alias", "key"), [("auto_split_proportion", "val_split_proportion"), ("manual_data_root", "val_data_root")]
)
def test_other_names_of_keys_mean_the_same(alias, key, validation, wrong) -> None:
    value = 0.3 if "proportion" in key else "input"
    mode = {} if "proportion" in key else {"val_split_mode": "manual"}
    assert (
        validation(**{alias: value}, **mode).validation.config == validation(**{key: value}, **mode).validation.config
    )
    (line,) = wrong(**{key: value, alias: 0.4 if value == 0.3 else "other"}, **mode)
    assert f"contradicts {key}" in line


def test_the_best_needs_a_set_to_compare_by(wrong, validation) -> None:
    (line,) = wrong(validate_training=False, stabilize_training_loss=True, keep_best_ckpt=True)
    assert "needs a set to compare by" in line
    assert validation(keep_best_ckpt=True).validation.config.watched == VAL
    extra = {"dog": "input"}
    run = validation(validate_training=False, stabilize_training_loss=True, extra_manual_datasets=extra)
    assert run.validation.config.watched == "dog"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (
            {"validate_training": False, "val_split_proportion": 0.3, "stabilize_training_loss": True},
            "val_split_proportion",
        ),
        ({"val_data_root": "input"}, "val_data_root"),
        ({"val_split_mode": "manual", "val_data_root": "input", "val_split_proportion": 0.3}, "val_split_proportion"),
        ({"stabilize_split_proportion": 0.5}, "stabilize_split_proportion"),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_named(settings, key, validation) -> None:
    (note,) = validation(**settings).notes
    assert note.startswith("validation.json:")
    assert f"{key} has no effect: " in note


def test_a_file_that_validates_nothing_says_so(validation) -> None:
    run = validation(validate_training=False)
    assert run.validation is None
    assert run.notes == ("validation.json: nothing is validated: every kind of validation is off",)


def test_a_best_checkpoint_that_is_not_saved_is_a_line(resolve, tmp_path) -> None:
    (tmp_path / "validation.json").write_text('{"keep_best_ckpt": true}')
    notes = resolve({"validation_config": "validation.json", "save_nothing": True}).notes
    assert "validation.json:1: keep_best_ckpt has no effect: save_nothing is set" in notes


def test_a_run_json_repeats_the_validation(validation, tmp_path, registry) -> None:
    run = validation(val_split_mode="manual", val_data_root="input", extra_manual_datasets={"dog": "input"}, seed=7)
    record = tmp_path / "elsewhere" / "run.json"
    record.parent.mkdir()
    record.write_text(json.dumps(configuration_of(run)))
    again = load_config({}, registry, record)
    assert again.validation.config == run.validation.config
    assert load_config({"validation_config": "null"}, registry, record).validation is None
    (tmp_path / "other.json").write_text('{"seed": 8}')
    other = load_config({"validation_config": str(tmp_path / "other.json")}, registry, record)
    assert other.validation.config == ValidationConfig(seed=8)
