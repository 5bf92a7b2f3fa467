"""Every line of bad configuration: exit by ConfigError with file, key, value, what is allowed; never a traceback."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from ed_train.config.checks import output_problem
from ed_train.config.jsontext import read_json_object
from ed_train.config.load import load_config
from ed_train.errors import ConfigError
from ed_train.registry import load_registry

BAD_TEXTS = {
    "empty file": ("", "found an empty file; expected an object"),
    "blank file": (" \n\n", "found an empty file"),
    "top-level list": ("[]", "found [] (list) at the top level; expected an object"),
    "top-level null": ("null", "found null at the top level"),
    "trailing comma": ('{\n "lr": 1e-6,\n}', "t.json:2:12: remove the comma"),
    "line comment": ('{\n // note\n "lr": 1}', "t.json:2:2: JSON has no comments"),
    "comment behind a value": ('{"lr": 1, # x\n "wandb": true}', "t.json:1:11: JSON has no comments"),
    "comment before a comma": ('{"lr": 1 /* x */, "wandb": true}', "t.json:1:10: JSON has no comments"),
    "comment at the end": ('{"lr": 1} // x', "JSON has no comments"),
    "block comment": ('{ /* note */ "lr": 1}', "t.json:1:3: JSON has no comments"),
    "comment for a value": ('{"lr": # x\n 1}', "JSON has no comments"),
    "single quotes": ("{'lr': 1}", "t.json:1:2: single quotes are not JSON"),
    "no quotes": ("{lr: 1}", 't.json:1:2: expected a key in double quotes; write "lr"'),
    "number for a key": ("{3: 1}", "t.json:1:2: expected a key in double quotes"),
    "single-quoted value": ("{\"a\": 'b'}", "single quotes are not JSON"),
    "duplicate key in a line": (
        '{"lr": 1, "lr": 2}',
        "t.json:1: lr: duplicate key; it stands twice in line 1; keep one",
    ),
    "duplicate key": ('{"lr": 1,\n "lr": 2}', "t.json:2: lr: duplicate key; it stands in line 1 and in line 2"),
    "NaN": ('{"lr": NaN}', "JSON has no NaN"),
    "Infinity": ('{"lr": Infinity}', "JSON has no Infinity"),
    "minus Infinity": ('{"lr": -Infinity}', "JSON has no Infinity"),
    "1e400": ('{"lr": 1e400}', "1e400 is too large"),
    "5,000-digit integer": ('{"lr": ' + "1" * 5000 + "}", "an integer of 5000 digits"),
    "nested 100,000 deep": ('{"a":' * 100_000, "nested deeper than 50 levels"),
    "lists nested 100,000 deep": ('{"a":' + "[" * 100_000, "nested deeper than 50 levels"),
    "Python's True": ('{"wandb": True}', "'True': write true"),
    "Python's None": ('{"wandb": None}', "'None': write null"),
    "NUL in a text": ('{"a": "\\u0000"}', "NUL"),
    "cut short": ('{\n"a": "b', 't.json:2:6: the text that begins here does not end; close it with "'),
    "a Windows path": (r'{"a": "C:\pics"}', "t.json:1:10: a backslash within a text; write two of them, or / in paths"),
    "another Windows path": (r'{"a": "C:\users"}', "a backslash within a text; write two of them, or / in paths"),
    "tab in a text": ('{"a": "b\tc"}', "t.json:1:9: a line break or tab within a text; write \\n or \\t"),
    "cut short behind a comma": ('{"a": 1,', "the file ends too early"),
    "UTF-16 without a mark": ("".join(f"{c}\0" for c in '{"a": 1}'), "has NUL characters; save the file as UTF-8"),
    "cut short behind a key": ('{"a":', "the file ends too early"),
    "two values": ("{} {}", "unexpected text after the end"),
    "leading zero": ('{"a": 01}', "does not begin a number in JSON"),
    "no colon": ('{"a" 1}', 'expected ":" after the key "a"'),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_json_is_one_clear_line(name: str, tmp_path: Path) -> None:
    text, expected = BAD_TEXTS[name]
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_json_object(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_utf8_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(b'\xef\xbb\xbf{"lr": 1}')
    assert read_json_object(tmp_path / "t.json").value == {"lr": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings_are_named_as_the_problem(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes('{"project_name": "é"}'.encode(encoding))
    with pytest.raises(ConfigError, match="is not UTF-8; save the file as UTF-8"):
        read_json_object(tmp_path / "t.json")


def test_a_pipe_and_an_endless_file_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.json")
    with pytest.raises(ConfigError, match=r"t\.json: found an empty file"):
        read_json_object(tmp_path / "t.json")
    with pytest.raises(ConfigError, match="zero: larger than"):
        read_json_object(Path("/dev/zero"))


def test_a_pipe_that_is_written_to_is_read_to_its_end(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        time.sleep(0.2)  # the reader waits for it
        os.write(write, b'{"lr": 1}')
        os._exit(0)
    os.close(write)
    assert read_json_object(Path(f"/dev/fd/{read}")).value == {"lr": 1}
    os.close(read)
    os.waitpid(child, 0)


def test_a_duplicate_key_does_not_hide_other_problems(tmp_path: Path, problems) -> None:
    text = '{"lr": 1,\n"lr": 2,\n"batch_size": 0}'
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config({}, load_registry(), tmp_path / "train.json")
    lines = str(error.value).splitlines()
    assert "train.json:2: lr: duplicate key; it stands in line 1 and in line 2; keep one" in lines
    assert any(line.startswith("train.json:3: batch_size: got 0") for line in lines)


def test_missing_file_names_the_folder_and_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        read_json_object(tmp_path / "trian.json")
    assert str(tmp_path) in str(error.value)
    assert "did you mean train.json?" in str(error.value)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json_object(tmp_path)


BAD_TRAIN_VALUES = [
    ("lr", "1e-6", '"1e-6" (string); expected a number > 0 or null, e.g. 1e-6 (without quotes)'),
    ("lr", True, "true (boolean); expected a number > 0"),
    ("lr", -1e-6, "-1e-06 (number); expected a number > 0"),
    ("lr", 0, "0 (number); expected a number > 0"),
    ("batch_size", 0, "0 (number); expected an integer >= 1"),
    ("batch_size", 1.5, "1.5 (number); expected an integer >= 1"),
    ("batch_size", 10**20, "expected an integer >= 1 and <= 16384"),  # would be planned until the memory is full
    ("max_epochs", 10**9, "expected an integer >= 1 and <= 100000"),
    ("logdir", "", 'got ""; expected a folder'),
    ("cache_dir", "", 'got ""; expected a folder'),
    ("save_ckpt_dir", "", 'got ""; expected a folder'),
    ("data_root", "", "not a usable path: it is empty"),
    ("logdir", "~nobody-of-that-name/logs", "there is no such user; to begin a name with ~, write ./~nobody"),
    ("logdir", "y" * 300, "not a usable path: File name too long"),
    ("data_root", "y" * 3000, "not a usable path: File name too long"),
    ("max_epochs", -1, "-1 (number); expected an integer >= 1"),
    ("grad_accum", 0, "0 (number); expected an integer >= 1"),
    ("seed", -2, "-2 (number); expected an integer >= -1"),
    ("seed", 2**32, "4294967296 (number); expected an integer >= -1 and <= 4294967295"),
    ("seed", "42", '"42" (string); expected an integer'),
    ("flip_p", 1.5, "1.5 (number); expected a number >= 0 and <= 1"),
    ("wandb", 1, "1 (number); expected true or false"),
    ("lr_scheduler", "Cosine", '"Cosine" (string); expected one of "constant"'),
    ("loss_type", "l1", '"l1" (string); expected one of "mse", "huber", "mse_huber"'),
    ("data_root", ["a"], '["a"] (list); expected a text'),
    ("resolution", 500, "got 500; expected a multiple of 64, e.g. 512"),
    ("timestep_end", 0, "leave nothing to train"),
    ("project_name", "../../x", "expected a name"),
    ("project_name", "/tmp/x", "expected a name"),
    ("project_name", "~", "expected a name"),
    ("project_name", "x" * 300, "at most 100"),
    ("run_name", "a/b", "expected a name"),
    ("resume_ckpt", "findlast", "no checkpoint of project"),
]


@pytest.mark.parametrize(("key", "value", "expected"), BAD_TRAIN_VALUES)
def test_bad_value_in_train_json(key, value, expected, problems) -> None:
    (line,) = problems({key: value})
    assert line.startswith("train.json:")
    assert f": {key}: " in line
    assert expected in line


def test_bad_flag_names_the_flag(problems) -> None:
    assert problems(lr="fast") == ['--lr: got "fast" (string); expected a number > 0 or null']


BAD_OPTIMIZER_VALUES = [
    ({"betas": [0.9]}, "base.betas", "expected a list of 2 numbers >= 0 and < 1"),
    ({"betas": [0.9, 0.99, 0.999]}, "base.betas", "expected a list of 2 numbers"),
    ({"betas": "0.9, 0.99"}, "base.betas", '"0.9, 0.99" (string); expected a list of 2 numbers'),
    ({"betas": [0.9, 1.0]}, "base.betas", "[0.9, 1.0] (list); expected a list of 2 numbers >= 0 and < 1"),
    ({"weight_decay": -1}, "base.weight_decay", "-1 (number); expected a number >= 0"),
    ({"weight_decay": "0.01"}, "base.weight_decay", "e.g. 0.01 (without quotes)"),
    ({"lr": -1}, "base.lr", "-1 (number); expected a number"),
    ({"optimizer": 3}, "base.optimizer", "3 (number); expected the name of an optimizer"),
    ({"optimizer": "adamw9bit"}, "base.optimizer", "did you mean 'adamw8bit'?"),
    ({"weight_dekay": 0.1}, "base.weight_dekay", "unknown key; did you mean 'weight_decay'?"),
    ({"lr_scheduler": "sine"}, "base.lr_scheduler", "expected one of"),
    ({"lr_decay_steps": 5, "lr_warmup_steps": 6}, "base", "lr_warmup_steps 6 is more than lr_decay_steps 5"),
    ({"lr_warmup_steps": 1.5}, "base.lr_warmup_steps", "1.5 (number); expected an integer"),
]


@pytest.mark.parametrize(("base", "key", "expected"), BAD_OPTIMIZER_VALUES)
def test_bad_value_in_optimizer_json(base, key, expected, problems) -> None:
    lines = problems({}, {"base": base})
    assert len(lines) == 1, lines
    assert lines[0].startswith("optimizer.json:1: " + key)
    assert expected in lines[0]


@pytest.mark.parametrize("section", ["base", "text_encoder_overrides", "text_encoder_freezing"])
@pytest.mark.parametrize("value", [3, "adamw", [1]])
def test_a_section_that_is_no_object(section, value, problems) -> None:
    (line,) = problems({}, {section: value})
    assert f"{section}: got" in line
    assert "expected an object" in line


def test_unknown_section_gets_a_suggestion(problems) -> None:
    assert "did you mean 'text_encoder_overrides'?" in problems({}, {"text_encoder_override": {}})[0]


def test_all_problems_of_all_files_are_reported_at_once(problems) -> None:
    lines = problems(
        {"batch_size": 0, "reslution": 512, "data_root": "nowhere"}, {"base": {"lr": "x", "beta": 1}}, seed="x"
    )
    assert {line.split(": ")[1].split(" ")[0] for line in lines} >= {"batch_size", "reslution", "base.lr", "base.beta"}
    assert any(line.startswith("--seed: ") for line in lines)
    assert any("data_root" in line and "not found as" in line for line in lines)


def test_all_problems_of_a_model_are_reported_at_once(problems, micro_model: Path, tmp_path: Path) -> None:
    shutil.copytree(micro_model, tmp_path / "model")
    (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "model/vae/diffusion_pytorch_model.safetensors").write_bytes(b"")
    lines = problems({"resume_ckpt": "model", "batch_size": 0})
    batch_size, unet, vae = lines
    assert "batch_size" in batch_size
    assert "has no weights" in unet
    assert "the file is empty" in vae


def test_unreadable_output_folder(problems, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (line,) = problems({"logdir": "file"})
    assert "logdir" in line
    assert "is a file" in line


@pytest.mark.parametrize("target", ["nowhere", "link"])
@pytest.mark.parametrize("key", ["logdir", "data_root", "optimizer_config"])
def test_a_link_that_leads_nowhere(problems, tmp_path: Path, key, target) -> None:
    (tmp_path / "link").symlink_to(target)
    (line,) = problems({key: "link"})
    assert f"{tmp_path / 'link'} is a link that leads nowhere" in line


def test_read_only_output_folder(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    for parent in tmp_path.relative_to(tempfile.gettempdir()).parents:  # pytest makes them for their owner alone
        if parent != Path():
            (tempfile.gettempdir() / parent).chmod(0o755)
    child = os.fork()
    if child == 0:  # root may write anywhere, so ask as somebody else
        if os.geteuid() == 0:
            os.setuid(65534)
        os._exit(0 if "is not writable" in output_problem(locked / "logs") else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_missing_optimizer_json_names_both_places(problems, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (line,) = problems({"optimizer_config": "optimiser.json"})
    assert str(tmp_path / "optimiser.json") in line
    assert str(tmp_path / "elsewhere" / "optimiser.json") in line


def test_file_beside_the_naming_file_wins_over_the_current_folder(resolve, tmp_path: Path, monkeypatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "input").mkdir(parents=True)
    (elsewhere / "optimizer.json").write_text('{"base": {"optimizer": "lion"}}')
    monkeypatch.chdir(elsewhere)
    run = resolve({}, {"base": {"optimizer": "adamw"}})
    assert run.components["unet"].optimizer.spec.name == "adamw"
    assert Path(run.train.data_root) == tmp_path / "input"


def test_freezing_the_same_layers_in_contradicting_ways(problems) -> None:
    freezing = {"unfreeze_last_n_layers": 2, "unfreeze_final_n_layers": 3}
    assert "text_encoder_freezing" in problems({}, {"text_encoder_freezing": freezing})[0]


def test_both_components_disabled(problems) -> None:
    lines = problems({"disable_unet_training": True, "disable_textenc_training": True})
    assert "nothing is left to train" in lines[0]


def test_wandb_without_the_package(problems) -> None:
    assert "pip install wandb" in problems({"wandb": True})[0]
