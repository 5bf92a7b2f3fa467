"""The command: what it prints, what it returns, and what it must not import."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from ed_train import __version__
from ed_train.cli import main
from ed_train.commands.arguments import parse_arguments
from ed_train.config.describe import annotations_of
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import CheckpointError, ConfigError, PluginError

NINE = {
    "adamw", "adamw8bit", "dadapt_adam", "dadapt_adan", "dadapt_lion", "dadapt_sgd", "lion", "lion8bit", "prodigy",
}  # fmt: skip
HEAVY = {
    "accelerate", "bitsandbytes", "dadaptation", "diffusers", "importlib_metadata", "lion_pytorch", "numpy", "PIL",
    "prodigyopt", "tensorboard", "torch", "tqdm", "transformers", "yaml",
}  # fmt: skip
REPORT_MODULES = (
    "import sys; import ed_train.cli; code = ed_train.cli.main(sys.argv[1:]); print(*sys.modules); exit(code)"
)


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ed_train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=120)


def imported_by(*arguments: str, folder: Path | None = None) -> tuple[int, set[str]]:
    """Exit status of the command, and the packages that it imported in a fresh interpreter."""
    command = [sys.executable, "-c", REPORT_MODULES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=120)
    return done.returncode, {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


# --list-optimizers


def test_list_optimizers_as_text() -> None:
    done = run("--list-optimizers")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert rows.keys() >= NINE
    assert re.fullmatch(r"lion +ed-train-lion \d\S+ +Lion: sign of .*", rows["lion"])
    assert all(len(row) <= 120 for row in rows.values())


def test_list_optimizers_as_json() -> None:
    done = run("--list-optimizers", "--json")
    listed = json.loads(done.stdout)
    assert {row["name"] for row in listed["optimizers"]} >= NINE
    assert listed["broken"] == []
    (lion,) = [row for row in listed["optimizers"] if row["name"] == "lion"]
    assert lion.keys() == {"name", "summary", "distribution", "version", "devices", "usable", "reason"}
    assert lion["distribution"] == "ed-train-lion"


def test_list_optimizers_shows_what_is_broken(tmp_path, monkeypatch) -> None:
    metadata = tmp_path / "broken_plugin-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: broken-plugin\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[ed_train]\nit = does_not_exist\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reason = "ModuleNotFoundError: No module named 'does_not_exist'"
    done = run("--list-optimizers")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == f"broken: broken-plugin 1.2 (it): {reason}"
    assert len(done.stdout.splitlines()) > len(NINE)
    (broken,) = json.loads(run("--list-optimizers", "--json").stdout)["broken"]
    assert broken == {"entry_point": "it", "distribution": "broken-plugin", "version": "1.2", "error": reason}


def test_list_optimizers_without_any_plugin(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert main(["--list-optimizers"]) == 0
    first, *missing = capsys.readouterr().out.splitlines()
    assert first == "no optimizer is installed"
    assert "not installed: lion: pip install ed-train-lion" in missing


@pytest.mark.parametrize("arguments", [["--list-optimizers"], ["--list-optimizers", "--json"], ["--list_optimizers"]])
def test_listing_imports_nothing_heavy(arguments) -> None:
    status, imported = imported_by(*arguments)
    assert status == 0
    assert imported & (HEAVY | {"pydantic"}) == set()
    if arguments == ["--list-optimizers"]:  # the way that must stay instant: each of these takes a tenth of its time
        assert imported & {"argparse", "difflib", "json", "logging", "packaging", "pathlib"} == set()


def test_listing_is_instant() -> None:
    listing = cpu_seconds([sys.executable, "-m", "ed_train", "--list-optimizers"])
    bare = cpu_seconds([sys.executable, "-c", "pass"])
    assert listing < 15 * bare  # about 6 times; one plugin that imports torch makes it 100


def cpu_seconds(command: list[str]) -> float:
    """Process time of a command, user and system: the median of seven runs."""
    times = []
    for _ in range(7):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(usage.ru_utime + usage.ru_stime)
    return statistics.median(times)


# Wrong input


@pytest.fixture
def wrong_files(tmp_path: Path) -> Path:
    train = {"batch_size": 0, "optimizer_config": "optimizer.json", "resume_ckpt": "owner/model", "data_root": "."}
    (tmp_path / "train.json").write_text(json.dumps(train, indent=1))
    (tmp_path / "optimizer.json").write_text('{"base": {"optimizer": "adamw8bits"}}')
    return tmp_path


def test_config_errors_exit_with_2_and_a_line_each(wrong_files) -> None:
    done = run("--config", "train.json", "--seed", "x", folder=wrong_files)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert "error: train.json:2: batch_size: got 0 (number); expected an integer >= 1 and <= 16384" in lines
    assert 'error: --seed: got "x" (string); expected an integer >= -1 and <= 4294967295' in lines
    assert any("optimizer.json:1: base.optimizer: no installed optimizer is called 'adamw8bits'" in x for x in lines)
    assert sorted(os.listdir(wrong_files)) == ["optimizer.json", "train.json"]


@pytest.mark.parametrize(
    "arguments",
    [["--config", "train.json"], ["--config", "missing.json"], ["--max_epoch", "3"], [], ["--lr"], ["--lr", "x"]],
    ids=" ".join,
)
def test_config_errors_import_nothing_heavy(arguments, wrong_files) -> None:
    status, imported = imported_by(*arguments, folder=wrong_files)
    assert status == 2
    assert imported & HEAVY == set()


WRONG_COMMAND_LINES = {
    "--max_epoch 3": "--max_epoch: unknown flag; did you mean --max_epochs?",
    "--max-epoch=3": "--max-epoch: unknown flag; did you mean --max_epochs?",
    "--listoptimizers": "--listoptimizers: unknown flag; did you mean --list-optimizers?",
    "--zzz": "--zzz: unknown flag; see ed-train --help",
    "-x": "-x: unknown flag; see ed-train --help",
    "--conf train.json": "--conf: unknown flag; did you mean --config?",
    "-- --check": "--: nothing can stand behind it; remove it",
    "--lr -1e-6": "--lr: got -1e-06 (number); expected a number > 0 or null",
    "--lr -inf": "--lr: got -Infinity (number); expected a number > 0 or null",
    "train.json": "train.json: not a flag; did you mean --config train.json?",
    "train": "train: not a flag",
    "--lr": "command line: argument --lr: expected one argument; see ed-train --help",
    "--lr --seed 3": "command line: argument --lr: expected one argument; see ed-train --help",
    "--config": "command line: argument --config: expected one argument; see ed-train --help",
    "--json": "--json: goes with --list-optimizers, --describe-optimizer, --check, --plan-memory only",
    "--list-optimizers --lr 3": "--lr: has no effect with --list-optimizers; remove it",
    "--config x.json --schema train": "--config: has no effect with --schema; remove it",
    "--describe-optimizer lion --seed=3": "--seed: has no effect with --describe-optimizer; remove it",
    "--config xyz.txt": "xyz.txt: no such file in {folder}; JSON files there: optimizer.json, train.json",
    "--config trian.json": "trian.json: no such file in {folder}; did you mean train.json?",
}


@pytest.mark.parametrize("line", WRONG_COMMAND_LINES)
def test_wrong_command_lines(line, wrong_files, monkeypatch, capsys) -> None:
    monkeypatch.chdir(wrong_files)
    assert main(line.split()) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "error: " + WRONG_COMMAND_LINES[line].format(folder=wrong_files)


def test_an_empty_argument_is_shown() -> None:
    with pytest.raises(ConfigError, match='"": not a flag'):
        parse_arguments([""])


def test_a_flag_that_is_given_twice_is_said(wrong_files) -> None:
    arguments = parse_arguments(
        ["--lr", "1", "--max-epochs=2", "--seed", "3", "--seed", "3", "--lr=2", "--max_epochs", "4"]
    )
    assert (arguments.flags["lr"], arguments.flags["max_epochs"]) == ("2", "4")
    assert arguments.notes == (
        "--lr 2 overrides --lr 1, given before it",
        "--max_epochs 4 overrides --max_epochs 2, given before it",
    )


def test_two_unknown_flags_are_both_reported() -> None:
    with pytest.raises(ConfigError) as error:
        parse_arguments(["--max_epoch", "3", "--batchsize", "4"])
    assert [p.where for p in error.value.problems] == ["--max_epoch", "--batchsize"]


def test_flags_are_never_abbreviated() -> None:
    with pytest.raises(ConfigError, match="did you mean --max_epochs"):
        parse_arguments(["--max_epo", "3"])


# Exit codes


@pytest.mark.parametrize(
    ("error", "status", "stderr"),
    [
        (ConfigError("wrong\x1b input"), 2, "error: wrong\\x1b input\n"),
        (PluginError("broken"), 1, "error: broken\n"),
        (CheckpointError("disk full\nsecond line"), 1, "error: disk full\nerror: second line\n"),
        (KeyboardInterrupt(), 130, "ed-train: interrupted\n"),
        (None, 0, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(error, status, stderr, monkeypatch, tmp_path, capsys) -> None:
    def train(run: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("ed_train.train.train.train", train)
    flags = ["--resume_ckpt", "owner/model", "--data_root", str(tmp_path), "--logdir", str(tmp_path / "logs")]
    assert main(flags) == status
    assert capsys.readouterr().err == stderr


def test_an_error_of_ours_in_the_code_is_not_swallowed(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("ed_train.train.train.train", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--resume_ckpt", "owner/model", "--data_root", str(tmp_path)])


# Help


def test_help_mentions_every_key_in_its_group() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    flags = re.findall(r"^  --(\w+)", done.stdout, re.MULTILINE)
    assert flags[-len(annotations_of(TrainConfig)) :] == list(annotations_of(TrainConfig))
    headings = re.findall(r"^(\w.*):$", done.stdout, re.MULTILINE)
    assert headings[:5] == ["commands and files", "model", "data", "training", "optimizer"]
    assert "SUPPRESS" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_help_shows_defaults() -> None:
    text = " ".join(run("--help").stdout.split())
    assert "pictures per step and process (default: 2)" in text
    assert "2 % of lr_decay_steps" in text
    assert "(default: null)" not in text


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"ed-train {__version__}\n")


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("ed-train")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"ed-train {__version__}\n"


@pytest.mark.parametrize("argument", ["--help", "--list-optimizers", "--version"])
def test_a_reader_that_goes_away_is_no_traceback(argument) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ed_train", argument]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writer)
    assert done.stderr == ""


PRINTS = """
import os, sys
from ed_train.cli import leave_with
def command(argv):
    print("x")
    print("y", file=sys.stderr)
    assert os.open("/dev/null", os.O_WRONLY) > 2, "a file that takes the place of a stream has in it what is printed"
    return 5
leave_with(command)
"""


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [(">&-", "", "y\n"), ("2>&-", "x\n", ""), ("<&-", "x\n", "y\n"), ("<&- >&- 2>&-", "", "")],
)
def test_closed_standard_streams_do_no_harm(closed, out, err) -> None:
    line = f'"$0" -c "$1" {closed}'
    command = ["sh", "-c", line, sys.executable, PRINTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (5, out, err)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no device that is always full")
def test_an_output_on_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "ed_train", "--list-optimizers"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.stderr == "ed-train: the output could not be written: No space left on device\n"
    assert done.returncode == 1
