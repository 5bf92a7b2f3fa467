"""Every key of train.json: known, taken from file and flag, and never without effect in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ed_train.cli import main
from ed_train.commands.arguments import parse_arguments
from ed_train.config.describe import annotations_of, default_of
from ed_train.config.train_keys import DEAD, OWN_KEYS, TrainConfig

KEYS_OF_USERS = re.findall(
    r"\w+",
    """
    attn_type batch_size ckpt_every_n_minutes clip_grad_norm clip_skip cond_dropout data_root disable_amp
    disable_textenc_training disable_unet_training ema_decay_rate ema_device ema_resume_model ema_sample_ema_model
    ema_sample_nonema_model ema_strength_target ema_update_interval embedding_perturbation enable_zero_terminal_snr
    flip_p gpuid grad_accum gradient_checkpointing keep_tags load_settings_every_epoch log_step logdir loss_type lr
    lr_decay_steps lr_scheduler lr_warmup_steps max_epochs min_snr_gamma no_prepend_last no_save_ckpt notebook
    optimizer_config plugins project_name pyramid_noise_discount rated_dataset rated_dataset_target_dropout_percent
    resolution resume_ckpt run_name sample_prompts sample_steps save_ckpt_dir save_ckpts_from_n_epochs
    save_every_n_epochs save_full_precision save_optimizer seed shuffle_tags timestep_end timestep_start train_sampler
    validation_config wandb write_schedule zero_frequency_noise_ratio
    amp disable_xformers lowvram scale_lr ed1_mode useadam8bit rated_dataset_target_dropout_rate
    """,
)

IN_FILE_AND_FLAG: dict[str, tuple[Any, Any]] = {
    "resume_ckpt": ("owner/one", "owner/two"),
    "enable_zero_terminal_snr": (True, False),
    "clip_skip": (1, 2),
    "gradient_checkpointing": (True, False),
    "train_sampler": ("pndm", "ddim"),
    "data_root": ("one", "two"),
    "resolution": (256, 320),
    "batch_size": (3, 4),
    "flip_p": (0.5, 0.0),
    "crops_per_image": (2, 3),
    "cond_dropout": (0.0, 1.0),
    "shuffle_tags": (True, False),
    "keep_tags": (1, 0),
    "rated_dataset": (True, False),
    "rated_dataset_target_dropout_percent": (20.0, 80.0),
    "cache_dir": ("one", "two"),
    "seed": (0, 42),
    "max_epochs": (2, 3),
    "max_steps": (20, 30),
    "grad_accum": (2, 4),
    "disable_unet_training": (False, True),
    "disable_textenc_training": (True, False),
    "mixed_precision": ("no", "auto"),
    "disable_amp": (True, False),
    "gpuid": (1, 0),
    "load_settings_every_epoch": (True, False),
    "optimizer_in_backward": (True, False),
    "weights_dtype": ("bf16", "fp32"),
    "optimizer_config": ("one.json", "two.json"),
    "lr": (2e-6, 3e-6),
    "lr_scheduler": ("cosine", "linear"),
    "lr_decay_steps": (30, 40),
    "lr_warmup_steps": (3, 0),
    "clip_grad_norm": (1.0, 0.5),
    "loss_type": ("huber", "mse"),
    "min_snr_gamma": (5.0, 1.0),
    "zero_frequency_noise_ratio": (0.02, 0.0),
    "pyramid_noise_discount": (0.9, 1.0),
    "embedding_perturbation": (0.1, 0.0),
    "timestep_start": (10, 20),
    "timestep_end": (900, 800),
    "ema_decay_rate": (0.999, 0.0),
    "ema_strength_target": (0.1, 0.5),
    "ema_update_interval": (5, 2),
    "ema_device": ("cpu", "cuda"),
    "ema_sample_ema_model": (True, False),
    "ema_sample_nonema_model": (True, False),
    "ema_resume_model": ("one", "two"),
    "project_name": ("one", "two"),
    "run_name": ("one", "two"),
    "logdir": ("one", "two"),
    "save_ckpt_dir": ("one", "two"),
    "save_every_n_epochs": (2, 3),
    "save_ckpts_from_n_epochs": (1, 0),
    "save_every_n_steps": (100, 1),
    "ckpt_every_n_minutes": (20, 0.5),
    "save_optimizer": (True, False),
    "keep_last_n_ckpts": (2, 3),
    "resume_changed": (True, False),
    "save_single_file": (True, False),
    "cache_text_embeddings": (True, False),
    "cache_max_gb": (10.0, 0.5),
    "compile": (True, False),
    "save_full_precision": (True, False),
    "no_save_ckpt": (True, False),
    "save_nothing": (True, False),
    "no_prepend_last": (True, False),
    "sample_prompts": ("one.txt", "two.txt"),
    "sample_steps": (10, 0),
    "log_step": (1, 2),
    "write_schedule": (True, False),
    "validation_config": ("one.json", "two.json"),
}
"""A value for the file and another one for the command line; paths exist in the test's folder."""
OTHER_KEYS = {"attn_type", "model_config", "required_plugins", "resume", "wandb"}
"""Keys with tests of their own."""
PATHS = {
    "data_root", "cache_dir", "logdir", "save_ckpt_dir", "optimizer_config", "sample_prompts", "ema_resume_model",
    "validation_config",
}  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.json").write_text("{}")
        (tmp_path / f"{name}.txt").write_text("a photo")
    return tmp_path


def test_every_key_that_users_have_is_known() -> None:
    known = annotations_of(TrainConfig)
    assert [key for key in KEYS_OF_USERS if key not in known] == []
    assert set(known) == {*KEYS_OF_USERS, *OWN_KEYS}


def test_every_key_has_an_effect_or_says_that_it_has_none() -> None:
    assert set(annotations_of(TrainConfig)) == {*IN_FILE_AND_FLAG, *OTHER_KEYS, *DEAD}


@pytest.mark.parametrize("key", IN_FILE_AND_FLAG)
def test_command_line_over_train_json_over_default(key, resolve, inputs) -> None:
    in_file, flag = IN_FILE_AND_FLAG[key]

    def value_of(train: dict[str, Any], **flags: str) -> tuple[Any, str]:
        run = resolve(train, **flags)
        value = getattr(run.train, key)
        return (Path(value).name if key in PATHS and value else value), run.sources[key]

    default = default_of(TrainConfig, key)
    if key != "resume_ckpt":  # which has none
        unset, source = value_of({"logdir": "logs"})
        assert unset == (default if key != "cache_dir" else "cache")
        assert source == "default" or key == "logdir"
    value, source = value_of({key: in_file})
    assert value == in_file
    assert source.startswith("train.json:")
    text = str(flag).lower() if isinstance(flag, bool) else str(flag)
    assert value_of({key: in_file}, **{key: text}) == (flag, f"--{key}")


@pytest.mark.parametrize("key", [key for key in IN_FILE_AND_FLAG if key != "resume_ckpt"])
def test_null_means_the_default(key, resolve, inputs) -> None:
    assert resolve({key: None}).train == resolve({}).train
    assert resolve({key: IN_FILE_AND_FLAG[key][0]}, **{key: "null"}).train == resolve({}).train


def test_a_switch_without_a_value_is_on(resolve) -> None:
    assert resolve({"shuffle_tags": False}, **parse_arguments(["--shuffle_tags"]).flags).train.shuffle_tags is True


@pytest.mark.parametrize("text", ["true", "none", "42", "1e-6"])
def test_a_flag_for_a_text_takes_texts_that_look_like_something_else(text, resolve) -> None:
    assert resolve({}, project_name=text).train.project_name == ("myproj" if text == "none" else text)


# Keys without effect

WITHOUT_EFFECT = {**DEAD, "attn_type": "torch's own attention"}
SET = {"attn_type": "xformers", "plugins": ["my.plugin"]}


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_key_without_effect_gives_one_line_that_names_it(key, resolve) -> None:
    value = SET.get(key, True)
    (line,) = resolve({key: value}).notes
    assert line.startswith(f"{key}={json.dumps(value)} (train.json:")
    assert "has no effect" in line or "without effect" in line
    assert WITHOUT_EFFECT[key] in line
    (line,) = resolve({}, **{key: "something"}).notes
    assert line.startswith(f"--{key} ")


@pytest.mark.parametrize("off", [None, False, 0, 0.0, "", "none", [], {}])
def test_a_key_without_effect_is_silent_when_it_is_off(off, resolve) -> None:
    assert resolve(dict.fromkeys(DEAD, off)).notes == ()


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (
            {"rated_dataset_target_dropout_percent": 20},
            "rated_dataset_target_dropout_percent=20 (train.json:3) has no effect without rated_dataset",
        ),
        (
            {"save_full_precision": True},
            "has no effect without save_single_file: checkpoint folders always are in float32",
        ),
        ({"resume_changed": True}, "resume_changed=true (train.json:3) has no effect without resume"),
        ({"save_ckpts_from_n_epochs": 2}, "(train.json:3) has no effect without save_every_n_epochs"),
        ({"save_nothing": True}, "means no checkpoint of any kind: what is trained is gone when the run ends"),
        (
            {"no_save_ckpt": True, "save_single_file": True},
            "save_single_file=true (train.json:4) has no effect with no_save_ckpt, which means checkpoint folders only",
        ),
        (
            {"save_nothing": True, "save_single_file": True},
            "save_single_file=true (train.json:4) has no effect with save_nothing",
        ),
    ],
)
def test_a_key_that_another_one_makes_idle_gets_a_line(train, line, resolve) -> None:
    assert line in resolve(train).notes[-1]


def test_keys_that_go_together_get_none(resolve) -> None:
    assert (
        resolve({"keep_tags": 2, "shuffle_tags": True, "save_full_precision": True, "save_single_file": True}).notes
        == ()
    )
    assert resolve({"keep_tags": 0, "save_full_precision": False, "no_save_ckpt": False}).notes == ()
    assert resolve({"no_save_ckpt": True}).notes == ()
    assert resolve({"save_ckpts_from_n_epochs": 2, "save_every_n_epochs": 1}).notes == ()
    assert resolve({"rated_dataset_target_dropout_percent": 50, "rated_dataset": False}).notes == ()
    assert resolve({"rated_dataset_target_dropout_percent": 20, "rated_dataset": True}).notes == ()


# The moving average


def test_details_of_an_average_that_is_off_give_one_line_that_names_them(resolve) -> None:
    off = {"ema_device": "", "ema_update_interval": 1, "ema_sample_ema_model": False, "ema_resume_model": None}
    assert resolve({**off, "ema_device": None, "ema_decay_rate": None, "ema_strength_target": None}).notes == ()
    (line,) = resolve({"ema_device": "cpu", "ema_update_interval": 5}, ema_resume_model="findlast").notes
    assert line.startswith("no effect without ema_decay_rate or ema_strength_target: ema_update_interval=5 (train.json")
    assert 'ema_device="cpu" (train.json' in line
    assert '--ema_resume_model "findlast"' in line
    assert resolve({"ema_device": "cpu", "ema_decay_rate": 0.9}).notes == ()


def test_a_strength_target_overrides_a_rate_and_says_so(resolve) -> None:
    (line,) = resolve({"ema_decay_rate": 0.999}, ema_strength_target="0.1").notes
    assert line.startswith("--ema_strength_target 0.1 overrides ema_decay_rate=0.999 (train.json:")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("ema_decay_rate", 1, "a number >= 0 and < 1 or null"),
        ("ema_decay_rate", -0.1, "a number >= 0 and < 1 or null"),
        ("ema_decay_rate", "0.999", "a number >= 0 and < 1 or null, e.g. 0.999 (without quotes)"),
        ("ema_strength_target", 0, "a number > 0 and < 1 or null"),
        ("ema_strength_target", 1.0, "a number > 0 and < 1 or null"),
        ("ema_update_interval", 0, "an integer >= 1"),
        ("ema_device", "gpu", 'one of "cpu", "cuda" or null'),
        ("ema_sample_ema_model", 1, "true or false"),
    ],
)
def test_a_wrong_value_of_the_average_is_an_error_in_the_usual_words(key, value, wanted, problems) -> None:
    (line,) = problems({key: value})
    assert line.startswith(f"train.json:3: {key}: got {json.dumps(value)} (")
    assert line.endswith(f"; expected {wanted}")


def test_a_model_for_the_average_that_is_not_there_is_an_error(problems, resolve) -> None:
    (line,) = problems({"ema_decay_rate": 0.9, "ema_resume_model": "nowhere/to/be/found"})
    assert line.startswith('train.json:4: ema_resume_model: "nowhere/to/be/found": no such file or folder')
    (line,) = resolve({"ema_decay_rate": 0.9, "ema_resume_model": "findlast"}).notes
    assert "ema_resume_model=" in line
    assert "has no checkpoint with an average in" in line


def test_unknown_key_of_train_json_gets_a_suggestion(problems) -> None:
    (line,) = problems({"max_epoch": 3})
    assert line == "train.json:3: max_epoch: unknown key; did you mean 'max_epochs'?"


def test_contradicting_keys_are_found_where_one_of_them_stands(problems) -> None:
    assert problems({"timestep_start": 1000})[0].startswith("train.json:3: timestep_start: timestep_start 1000 and")
    assert problems({"disable_amp": True, "mixed_precision": "bf16"})[0].startswith("train.json:3: disable_amp: ")


def test_control_characters_never_reach_the_terminal(problems) -> None:
    (line,) = problems({"max_epochs\n\x1b[31m": 1})
    assert line.startswith("train.json:3: max_epochs\\n\\x1b[31m: unknown key")
    assert "\\x7f\\u2028" in problems({"loss_type": "\x7f\u2028"})[0]


def test_half_a_surrogate_pair_is_no_text(problems) -> None:
    (line,) = problems({"logdir": "\ud83d"})
    assert line == "train.json:3:12: a text with half a surrogate pair"


def test_a_file_that_cannot_be_read_is_not_blamed_for_what_may_stand_in_it(problems) -> None:
    assert problems('{"resume_ckpt": "owner/model",}') == ['train.json:1:30: remove the comma before "}"']
    assert len(problems("{,}", seed="x")) == 2


def test_model_config_is_taken_for_a_single_file_and_refused_for_anything_else(problems) -> None:
    (line,) = problems({"model_config": "configs"})
    assert line.endswith('model_config "configs" is only for single files; remove it')


def test_wandb_is_taken_from_the_file_where_the_package_is_installed(resolve, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert resolve({"wandb": True}).train.wandb is True


def test_nothing_to_start_from(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: resume_ckpt: not set; name the model to start from")
