"""``ed-train --new-plugin`` writes a plugin that installs, passes its tests and trains as it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ed_train
import pytest
from ed_train.cli import main
from ed_train.commands import new_plugin as command
from ed_train.registry import load_registry
from ed_train.requirement import satisfies, split_requirement
from plugin_environment import Environment, install_module, make_environment

ROOT = Path(__file__).parents[2]
NAME = "my_first_optimizer"
DISTRIBUTION, PACKAGE = "ed-train-my-first-optimizer", "ed_train_my_first_optimizer"


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a new plugin."""
    command.new_plugin(NAME, str(tmp_path / "new"))
    capsys.readouterr()
    return tmp_path / "new"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--new-plugin", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(line.startswith("error: --new-plugin: ") for line in captured.err.splitlines())
    return captured.err


# What is written


def test_the_files(written) -> None:
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    sources = {f"src/{PACKAGE}/{file}" for file in ("__init__.py", "optimizer.py", "py.typed")}
    assert files == {"pyproject.toml", "README.md", "tests/test_contract.py", *sources}


def test_nothing_is_left_open(written) -> None:
    for path in written.rglob("*.*"):
        assert path.is_dir() or "$" not in path.read_text(encoding="utf-8")


def test_the_default_folder_is_that_of_the_distribution(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--new-plugin", NAME]) == 0
    assert (tmp_path / DISTRIBUTION / "pyproject.toml").is_file()
    assert f"\n  pip install -e './{DISTRIBUTION}[test]'\n" in capsys.readouterr().out


def test_an_empty_folder_and_one_with_a_blank_will_do(tmp_path, capsys) -> None:
    folder = tmp_path / "my plugins" / "new"
    folder.mkdir(parents=True)
    assert main(["--new-plugin", NAME, str(folder)]) == 0
    assert f"\n  python -m pytest '{folder}'\n" in capsys.readouterr().out


def test_the_metadata(written) -> None:
    if sys.version_info < (3, 11):
        import tomli as tomllib
    else:
        import tomllib

    project = tomllib.loads((written / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    assert project["entry-points"] == {"ed_train": {NAME: PACKAGE}}
    core = next(split for d in project["dependencies"] if (split := split_requirement(d)) and split[0] == "ed-train")
    assert satisfies(ed_train.__version__, core[1])


@pytest.mark.parametrize(
    ("version", "fits", "does_not"),
    [("0.1.0", ["0.1.0", "0.1.9"], ["0.0.9", "0.2.0"]), ("2.11.3", ["2.11.0", "2.11.4"], ["2.12", "2.2", "3.0"])],
)
def test_the_plugin_is_for_this_minor_series(version, fits, does_not, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(command, "__version__", version)
    command.new_plugin(NAME, str(tmp_path / "new"))
    (wanted,) = re.findall(r'^    "ed-train(.*)",$', (tmp_path / "new" / "pyproject.toml").read_text(), re.MULTILINE)
    assert all(satisfies(v, wanted) for v in fits)
    assert not any(satisfies(v, wanted) for v in does_not)


def test_the_module_is_under_40_lines(written) -> None:
    assert len((written / "src" / PACKAGE / "__init__.py").read_text().splitlines()) < 40


def test_the_readme_has_the_options_as_they_are(written, tmp_path, monkeypatch, request) -> None:
    from ed_train.config.describe import annotations_of, default_of, expected, help_of

    source = (written / "src" / PACKAGE / "__init__.py").read_text()
    install_module(tmp_path / "installed", PACKAGE, source)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    request.addfinalizer(lambda: sys.modules.pop(PACKAGE, None))
    config_type = load_registry().find(NAME).spec.config_type
    readme = (written / "README.md").read_text()
    row = re.compile(r"^\| `(\w+)` \| (.+) \| `(.+)` \| (.+) \|$", re.MULTILINE)
    rows = {m[1]: m.groups()[1:] for m in row.finditer(readme)}
    assert rows.keys() == annotations_of(config_type).keys()
    for option, annotation in annotations_of(config_type).items():
        words, default, help_ = rows[option]
        assert (words, help_) == (expected(annotation), help_of(annotation))
        assert json.loads(default) == default_of(config_type, option)
    (snippet,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    assert json.loads(snippet)["base"].keys() <= {"optimizer", *rows}


@pytest.mark.parametrize(
    "tool",
    [
        "ruff check --select E,F,W,I,B,C4,N,PIE,PT,RET,RUF,SIM,UP .",
        "ruff format --check .",
        pytest.param("mypy --strict --python-version=3.10 src", marks=pytest.mark.slow),
    ],
)
def test_the_source_is_clean(tool, written) -> None:
    command = [sys.executable, "-m", *tool.split()]
    done = subprocess.run(command, cwd=written, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_as_written_it_installs_passes_its_tests_and_trains(micro_model, photos, tmp_path) -> None:
    environment = make_environment(tmp_path / "venv")

    def run(line: str) -> str:
        done = environment.run(line)
        assert done.returncode == 0, done.stdout
        return done.stdout

    shown = run(f"ed-train --new-plugin {NAME}")
    steps = re.findall(r"^  ((?:pip|python|ed-train) .*)$", shown, re.MULTILINE)
    install, test, describe, train = steps
    run(install)
    assert re.search(r"\d\d passed", run(test))
    assert run(describe).startswith(f"{NAME}: Signum")
    (line,) = [line for line in run("ed-train --list-optimizers").splitlines() if line.startswith(NAME)]
    assert line.split()[1:3] == [DISTRIBUTION, "0.1.0"]
    write_run(environment, micro_model, photos)
    out = run(f"{train} --check")
    assert f"with {NAME}" in out
    out = run(train)
    assert "checkpoint: " in out


@pytest.mark.slow
def test_the_templates_are_in_the_wheel(tmp_path) -> None:
    environment = make_environment(tmp_path / "venv")
    done = environment.run(f"pip install --no-deps --target {tmp_path / 'wheel'} {ROOT / 'core'}")
    assert done.returncode == 0, done.stdout
    program = f"from ed_train.commands import new_plugin as n; print(n.__file__); n.new_plugin({NAME!r})"
    done = environment.run(f'PYTHONPATH={tmp_path / "wheel"} python -c "{program}"')
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(str(tmp_path / "wheel"))
    assert (environment.cwd / DISTRIBUTION / "src" / PACKAGE / "optimizer.py").is_file()


def write_run(environment: Environment, model: Path, photos: Path) -> None:
    """The files of a short run."""
    optimizer = {"base": {"optimizer": NAME, "momentum": 0.5}}
    settings = {
        "resume_ckpt": str(model), "data_root": str(photos), "resolution": 64, "max_steps": 2, "sample_steps": 0,
        "optimizer_config": "optimizer.json", "disable_amp": True,
    }  # fmt: skip
    (environment.cwd / "optimizer.json").write_text(json.dumps(optimizer))
    (environment.cwd / "train.json").write_text(json.dumps(settings))


# What is refused


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("Lion2", "lion2"),
        ("my-optimizer", "my_optimizer"),
        ("my__optimizer", "my_optimizer"),
        ("mine_", "mine"),
        ("2nd_order", "nd_order"),
        ("", "my_optimizer"),
        ("é", "my_optimizer"),
        ("../evil", "evil"),
        ("a\nb", "a_b"),
    ],
)
def test_a_name_that_is_none(name, example, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = refusal(capsys, name).splitlines()
    assert line.endswith(f"expected lower-case letters, digits and single underscores between them, e.g. {example}")
    assert repr(name) in line
    assert list(tmp_path.iterdir()) == []


def test_a_word_of_python(capsys) -> None:
    assert "'lambda' is a word of the Python language; expected another name, e.g. lambda_o" in refusal(
        capsys, "lambda"
    )


def test_a_name_that_is_too_long(capsys) -> None:
    assert f"{'a' * 51!r} has 51 characters; expected at most 50" in refusal(capsys, "a" * 51)


@pytest.mark.parametrize("name", ["lion", "dadapt_adam", "adamw8bit"])
def test_a_name_that_an_installed_optimizer_has(name, capsys) -> None:
    origin = load_registry().find(name).origin
    assert refusal(capsys, name).endswith(
        f"{name!r} is taken: {origin} has an optimizer of that name; choose another one\n"
    )


def test_a_name_of_ours_that_is_not_installed(capsys, monkeypatch) -> None:
    monkeypatch.setenv("ED_TRAIN_PLUGINS", "")
    assert "'lion' is taken: ed-train-lion has an optimizer of that name" in refusal(capsys, "lion")


def test_a_name_whose_distribution_exists(capsys, tmp_path, monkeypatch) -> None:
    assert "'bnb' is taken: there is a distribution ed-train-bnb already" in refusal(capsys, "bnb")
    install_module(tmp_path / "installed", "ed_train_broken_one", "raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert "there is a distribution ed-train-broken-one already" in refusal(capsys, "broken_one")


def test_a_folder_that_is_in_use(capsys, tmp_path, written) -> None:
    before = (written / "README.md").stat().st_mtime_ns
    assert f"{written}: is not empty; give another folder: --new-plugin NAME DIR" in refusal(capsys, NAME, str(written))
    assert (written / "README.md").stat().st_mtime_ns == before
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}: is not a folder; give another one" in refusal(capsys, NAME, str(tmp_path / "file"))


def test_all_problems_at_once(capsys, written) -> None:
    assert len(refusal(capsys, "No", str(written)).splitlines()) == 2


def test_a_folder_that_cannot_be_made(capsys, tmp_path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "new"
    assert f"{below}: cannot be written: Not a directory; give another folder" in refusal(capsys, NAME, str(below))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission(capsys, tmp_path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written: Permission denied" in refusal(capsys, NAME, str(tmp_path / "closed" / "new"))


def test_too_many_values(capsys) -> None:
    assert "expected NAME [DIR]" in refusal(capsys, NAME, "a", "b")
