"""A new family is one new folder: everything finds it there, and nothing else has to know its name."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from built_distributions import ROOT, Environment, build, run, tomllib
from ed_train.api import installed_plugins

pytestmark = pytest.mark.slow
MODEL, NEW = "adamw", "heavyball"
NEW_SOURCE = f"plugins/{NEW}/src/ed_train_{NEW}/__init__.py"
TESTS_OF_EVERY_FAMILY = {"tests/test_plugins_registry.py", "tests/test_plugin_readmes.py"}
UNTRACKED = {".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split())}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one new folder in plugins/, which is an existing one under another name."""
    copy = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*UNTRACKED))
    for file in (copy / "plugins" / MODEL).rglob("*"):
        if file.is_file():
            new = copy / "plugins" / Path(str(file.relative_to(copy / "plugins")).replace(MODEL, NEW))
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(file.read_text(encoding="utf-8").replace(MODEL, NEW), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def installed(repository, distribution, new_environment, tmp_path_factory) -> Environment:
    """The core and the new family, as wheels."""
    environment: Environment = new_environment()
    (wheel,) = build(repository / "plugins" / NEW, tmp_path_factory.mktemp("wheels"), "--wheel")
    done = environment.pip_install(str(distribution("core").wheel), str(wheel))
    assert done.returncode == 0, done.stderr
    return environment


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed(installed) -> None:
    assert output(installed.ed_train("--list-optimizers")).startswith(f"{NEW}  ed-train-{NEW} 0.1.0")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_installs_it(repository) -> None:
    commands = output(run("make", "--dry-run", "setup", cwd=repository))
    assert re.search(rf"--editable \./plugins/{NEW}\b", commands)
    assert re.search(r"--editable \./core\b", commands)


def test_uv_has_it_in_the_workspace(repository) -> None:
    members = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    assert repository / "plugins" / NEW in {folder for pattern in members for folder in repository.glob(pattern)}


def test_mypy_checks_it(repository) -> None:
    program = "from mypy.main import process_options; print(*(s.path for s in process_options([])[0]), sep='\\n')"
    assert NEW_SOURCE in output(run(sys.executable, "-c", program, cwd=repository)).splitlines()


def test_ruff_checks_it(repository) -> None:
    files = output(run(sys.executable, "-m", "ruff", "check", "--show-files", ".", cwd=repository)).splitlines()
    assert str(repository / NEW_SOURCE) in files


def test_its_tests_and_the_tests_of_every_family_run(repository, installed) -> None:
    """No path is given: pytest searches the configured folders. The other tests are left out, to save time."""
    wanted = {f"plugins/{NEW}", "tests/conftest.py", *TESTS_OF_EVERY_FAMILY}
    present = {path for top in ("plugins", "tests") for path in (repository / top).iterdir()}
    ignored = [f"--ignore={path}" for path in present - {repository / path for path in wanted}]
    done = installed.python("-m", "pytest", "-q", "-k", NEW, "-rA", *ignored, cwd=repository)
    passed = set(re.findall(r"^PASSED (\S+?)::", output(done), re.MULTILINE))
    its_own = {f"plugins/{NEW}/tests/test_contract.py", f"plugins/{NEW}/tests/test_{NEW}.py"}
    assert passed == its_own | TESTS_OF_EVERY_FAMILY


def test_the_documents_stay_as_they_are(repository, installed) -> None:
    page = repository / "docs" / "configuration.md"
    before = page.read_text(encoding="utf-8")
    output(installed.python("docs/generate.py", cwd=repository))
    assert page.read_text(encoding="utf-8") == before


# Nobody else knows a family by name

ABOUT_FAMILIES = {"plugins", "docs", "examples", "tests", "benchmarks", "first_party.py"}


def code_of(file: Path) -> str:
    """A file's text without what may be an example: comments, docstrings, and "e.g. ed-train-lion" in a message."""
    text = re.sub(r'e\.g\. (\["?)?ed-train-\w+', "", file.read_text(encoding="utf-8", errors="replace"))
    if file.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


def files_that_know_no_family(repository: Path) -> Iterator[Path]:
    for file in repository.rglob("*"):
        parts = set(file.relative_to(repository).parts)
        if file.is_file() and file.suffix != ".md" and not parts & (ABOUT_FAMILIES | UNTRACKED):
            yield file


def test_no_file_outside_names_a_family(repository) -> None:
    families = "|".join(folder.name for folder in (ROOT / "plugins").iterdir() if folder.is_dir())
    registry = installed_plugins()
    offered = [o.spec.name for o in registry] + [p.policy.section for p in registry.freeze_policies]
    named = re.compile(rf"ed[-_]train[-_]({families})\b|plugins/({families})\b|['\"`]({'|'.join(offered)})['\"`]")
    files = list(files_that_know_no_family(repository))
    assert {"Makefile", "pyproject.toml", "run", "cli.py", "requirements-dev.txt"} <= {file.name for file in files}
    found = {str(file.relative_to(repository)): match[0] for file in files if (match := named.search(code_of(file)))}
    assert found == {}
