"""`ed_train.testing` as an author meets it: one line in a test file, run by pytest in a process of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ed_train.api import installed_plugins

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "plugin-sgd"


def test_without_pytest_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['pytest'] = None; import ed_train.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ModuleNotFoundError: ed_train.testing needs pytest: pip install pytest\n")


def test_commands_import_neither_it_nor_pytest() -> None:
    code = "import sys, ed_train.cli; print({'pytest', 'ed_train.testing'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_one_line_is_enough_for_a_plugin_from_outside(tmp_path: Path) -> None:
    metadata = tmp_path / "ed_train_sgd-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: ed-train-sgd\nVersion: 0.1.0\nRequires-Dist: ed-train>=0.1,<0.2\n")
    (metadata / "entry_points.txt").write_text("[ed_train]\nsgd = ed_train_sgd\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(EXAMPLE / "src")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def set_in_tests(attribute: str) -> set[str]:
    """The values of a class attribute in the contract tests of all plugins."""
    return {
        statement.value.value
        for path in ROOT.glob("plugins/*/tests/test_contract.py")
        for case in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(case, ast.ClassDef)
        for statement in case.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        if [ast.unparse(target) for target in statement.targets] == [attribute]
    }


def is_from_here(distribution: str) -> bool:
    return (ROOT / "plugins" / distribution.removeprefix("ed-train-")).is_dir()


def test_every_optimizer_of_the_repository_keeps_the_contract() -> None:
    assert set_in_tests("name") == {o.spec.name for o in installed_plugins() if is_from_here(o.distribution)}


def test_every_section_of_the_repository_keeps_the_contract() -> None:
    policies = [p for p in installed_plugins().freeze_policies if is_from_here(p.distribution)]
    assert set_in_tests("section") == {p.policy.section for p in policies}
