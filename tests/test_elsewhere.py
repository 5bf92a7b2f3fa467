"""The loops in examples/elsewhere, run as their readers run them: optimizers of ed-train in other people's programs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "elsewhere"
ADAMW = ("--optimizer=adamw", "--option=lr=1e-3")
LION = ("--optimizer=lion", "--option=lr=3e-4")
PRODIGY = ("--optimizer=prodigy", "--option=d0=1e-4")


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def losses(done: subprocess.CompletedProcess[str]) -> tuple[float, float]:
    """The loss before and after."""
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(before|after): loss (\S+?),?(?: |$)", done.stdout, re.MULTILINE))
    return float(found["before"]), float(found["after"])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAMW, LION, ("--optimizer=prodigy",), ("--optimizer=dadapt_adam",)])
def test_plain_torch_loop(optimizer, tmp_path) -> None:
    before, after = losses(run("plain_torch.py", *optimizer, folder=tmp_path))
    assert after < 0.95 * before


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAMW, LION, PRODIGY])
def test_transformers_trainer(optimizer, tmp_path) -> None:
    before, after = losses(run("transformers_trainer.py", "--steps=60", *optimizer, folder=tmp_path))
    assert after < 0.9 * before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAMW, LION])
def test_diffusers_script(optimizer, tmp_path) -> None:
    before, after = losses(run("diffusers_script.py", "--steps=12", *optimizer, folder=tmp_path))
    assert after < 0.8 * before


@pytest.mark.slow
def test_diffusers_script_resumes_exactly(tmp_path) -> None:
    """After 8 of 14 steps, which is in the middle of the second epoch of 6."""
    options = ("--optimizer=prodigy", "--option=d0=1e-3")
    whole = run("diffusers_script.py", "--steps=14", *options, folder=tmp_path)
    first = run("diffusers_script.py", "--steps=8", "--output=out", *options, folder=tmp_path)
    second = run("diffusers_script.py", "--steps=14", "--resume=out/checkpoint-8", *options, folder=tmp_path)
    assert losses(first)[0] == losses(whole)[0]
    assert losses(first)[1] == losses(second)[0]
    assert losses(second)[1] == losses(whole)[1] < 0.8 * losses(whole)[0]
    (logged,) = re.findall(r"^step 10: loss \S+, lr (\S+)$", second.stdout, re.MULTILINE)
    assert second.stdout.splitlines()[1] in whole.stdout.splitlines()
    assert 1e-5 < float(logged) < 1e-2  # not the 1.0 that stands in the group


@pytest.mark.slow
@pytest.mark.parametrize("option", ["weight_dekay=0.01", "lr=-1"])
def test_a_wrong_option_is_explained(option, tmp_path) -> None:
    done = run("plain_torch.py", "--optimizer=adamw", f"--option={option}", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: adamw.")


def test_the_readme_names_every_script() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in FOLDER.glob("*.py")}
    assert set(re.findall(r"\]\((\w+\.py)\)", readme)) == scripts


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_a_script_stands_alone(script) -> None:
    """Its reader copies one file: it may import packages, but no other file of examples/."""
    beside = {path.stem for path in (*FOLDER.glob("*.py"), *FOLDER.parent.glob("*.py"))} | {"demo"}
    tree = ast.parse(script.read_text(encoding="utf-8"))
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported & beside == set()
