"""The command: what it refuses, and a whole comparison of real runs that is interrupted and goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ed_train.compare.cli import main

FAILING = '''
import torch


class Failing(torch.optim.SGD):
    """Fails at its second step."""

    steps = 0

    def step(self, closure=None):
        Failing.steps += 1
        if Failing.steps > 2:
            raise RuntimeError("it <b>broke</b>")
        return super().step(closure)
'''


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--optimisers", "lion"], "error: --optimisers: unknown flag"),
        (["--check"], "error: --check: is a command of ed-train"),
        (["--resume", "latest"], "error: --resume: is set for each run by ed-compare itself"),
        (["--optimizers", ","], "error: --optimizers: got no name"),
        (["--lr_grid", "fast"], 'error: --lr-grid: got "fast"'),
        (["--optimizers", "lion", "--lr", "-1"], "error: --lr: got -1"),
        (["--optimizers"], "error: command line: argument --optimizers: expected one argument; see ed-compare --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_ends_in_lines_and_status_2(flags, problem, setting, capsys) -> None:
    given = [f"--{key}={value}" for key, value in setting.flags.items()]
    assert main([*given, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err
    assert not (setting.folder / "logs").exists()


def test_json_has_the_errors_too(setting, capsys) -> None:
    assert main(["--json", "--optimizers", "lyon"]) == 2
    assert json.loads(capsys.readouterr().out)["errors"]


def test_help_names_its_own_flags(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.M)) == {
        "--version", "--optimizers", "--lr-grid", "--seeds", "--folder", "--json",
    }  # fmt: skip


def test_nothing_heavy_is_imported_before_the_first_run(setting) -> None:
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ed_train.compare.cli import main
from conftest import Setting
setting = Setting(Path({str(setting.folder)!r}) / "another")
assert main(["--optimizers", "lyon", *(f"--{{k}}={{v}}" for k, v in setting.flags.items())]) == 2
setting.places("lion", "prodigy@0.5")
print(sorted(sys.modules.keys() & {{"torch", "diffusers", "transformers", "accelerate", "tensorboard"}}))
"""
    (setting.folder / "another").mkdir()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_folder_that_cannot_be_written_to_is_one_line(setting, capsys) -> None:
    (setting.folder / "file").write_text("")
    given = [f"--{key}={value}" for key, value in setting.flags.items()]
    assert main([*given, "--optimizers", "lion", "--folder", str(setting.folder / "file" / "x")]) == 1
    assert "error: --folder: " in capsys.readouterr().err


class Command:
    """``ed-compare`` in a process of its own."""

    def __init__(self, tmp_path: Path, flags: dict[str, str]) -> None:
        (tmp_path / "failing_optimizer.py").write_text(FAILING)
        (tmp_path / "prompts.json").write_text(
            json.dumps({"samples": [{"prompt": "a <b>cat</b>"}], "num_inference_steps": 1})
        )
        more = {"sample_steps": "1000", "sample_prompts": str(tmp_path / "prompts.json"), "max_epochs": "50"}
        more |= {"max_steps": "12", "folder": str(tmp_path / "out"), "lr": "1e-3"}
        names = ["--optimizers", "adamw,failing_optimizer:Failing,lion,paged_adamw8bit"]
        self.arguments = [*(f"--{key}={value}" for key, value in {**flags, **more}.items()), *names]
        self.environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        self.log = tmp_path / "log.txt"

    def start(self, *more: str) -> subprocess.Popen[str]:
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "ed_train.compare", *self.arguments, *more]
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment, start_new_session=True
            )

    def wait_for(self, text: str, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 240
        while text not in self.log.read_text():
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


@pytest.mark.slow
def test_a_comparison_is_interrupted_goes_on_and_outlives_a_run_that_fails(tmp_path, flags) -> None:
    command = Command(tmp_path, flags)
    process = command.start()
    command.wait_for("[1/4] adamw: step 2/12", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    said = command.log.read_text()
    assert process.returncode == 130, said
    assert "adamw: interrupted" in said
    assert "stopped; go on with the same command: ed-compare --resume_ckpt=" in said
    assert "interrupted" in (tmp_path / "out" / "report.html").read_text()
    (adamw,) = (tmp_path / "out" / "runs").iterdir()
    (checkpoint,) = (adamw / "adamw" / "ckpts").iterdir()
    stopped_at = json.loads((checkpoint / "manifest.json").read_text())["step"]
    assert 0 < stopped_at < 12

    process = command.start("--json")
    out, _ = process.communicate(timeout=480)
    said = command.log.read_text()
    assert process.returncode == 1, said
    assert not (adamw / "adamw-2").exists(), "it went on in its folder"
    runs = {run["label"]: run for run in json.loads(out)["runs"]}
    assert {label: run["status"] for label, run in runs.items()} == {
        "adamw": "done",
        "failing_optimizer:Failing": "failed",
        "lion": "done",
        "paged_adamw8bit": "unusable",
    }
    reason = runs["failing_optimizer:Failing"]["reason"]
    assert "a step of failing_optimizer:Failing failed: RuntimeError: it <b>broke</b>" in reason
    for name, lr in (("adamw", 1e-3), ("lion", 1e-4)):
        run = runs[name]
        assert (run["lr"], run["effective_lr"]) == (pytest.approx(lr), pytest.approx(lr))
        assert run["curve"]["steps"] == [0, 4, 8, 12], "a validation of each epoch, of both parts, each once"
        assert run["best"] < run["curve"]["values"][0] == runs["lion"]["curve"]["values"][0]
        assert 0 < run["step_seconds"] < run["train_seconds"] < run["process_seconds"]
    assert runs["adamw"]["optimizer_state_mb"] == pytest.approx(2 * runs["lion"]["optimizer_state_mb"], rel=0.01)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in page
    assert page.count("data:image/jpeg;base64,") == 3, "before, adamw, lion"
    assert {path.name for path in (tmp_path / "out").glob("*.png")} >= {"samples.png", "step_time.png"}

    before = {path: path.stat().st_mtime_ns for path in adamw.rglob("*")}
    kept = Command(tmp_path, flags)
    kept.arguments[-1] = "adamw,lion"
    out, _ = (process := kept.start()).communicate(timeout=240)
    assert process.returncode == 0
    assert "[1/2] adamw: done before; kept" in kept.log.read_text()
    assert before == {path: path.stat().st_mtime_ns for path in adamw.rglob("*")}
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["adamw", "lion"]
