"""Plugins and cores of versions that do not go together: said by pip if it is asked, by ed-train if it was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from built_distributions import ROOT, Environment, build
from ed_train import __version__

pytestmark = pytest.mark.slow
REQUIREMENT = '"ed-train>=0.1,<0.2"'
NEWER, OLDER = '"ed-train>=9"', '"ed-train>=0.0.1,<0.1"'


@pytest.fixture
def lion_for(tmp_path: Path) -> Callable[[str], Path]:
    """``lion_for(requirement)``: the wheel of a lion plugin with another requirement, that says when it is imported."""

    def lion_for(requirement: str) -> Path:
        folder = shutil.copytree(ROOT / "plugins" / "lion", tmp_path / "lion")
        pyproject = folder / "pyproject.toml"
        text = pyproject.read_text(encoding="utf-8")
        assert REQUIREMENT in text
        pyproject.write_text(text.replace(REQUIREMENT, requirement), encoding="utf-8")
        module = folder / "src" / "ed_train_lion" / "__init__.py"
        imported = f"\nfrom pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
        module.write_text(module.read_text(encoding="utf-8") + imported, encoding="utf-8")
        (wheel,) = build(folder, tmp_path / "wheels", "--wheel")
        return wheel

    return lion_for


@pytest.fixture(scope="module")
def with_core(distribution, new_environment) -> Environment:
    """The core, for tests that install a lion of their own in place of another one's."""
    environment: Environment = new_environment()
    done = environment.pip_install(str(distribution("core").wheel))
    assert done.returncode == 0, done.stderr
    return environment


def install_anyway(environment: Environment, wheel: Path) -> None:
    done = environment.pip_install("--no-deps", "--force-reinstall", str(wheel))
    assert done.returncode == 0, done.stderr


def test_a_plugin_for_this_core_is_imported(lion_for, with_core, tmp_path) -> None:
    """Else the tests below would find no trace of an import either way."""
    install_anyway(with_core, lion_for(REQUIREMENT))
    assert with_core.ed_train("--list-optimizers").stdout.startswith("lion ")
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize(("requirement", "said"), [(NEWER, "needs ed-train>=9"), (OLDER, "needs ed-train<0.1,>=0.0.1")])
def test_a_plugin_for_another_core_is_reported_and_not_imported(
    requirement, said, lion_for, with_core, tmp_path
) -> None:
    install_anyway(with_core, lion_for(requirement))
    done = with_core.ed_train("--list-optimizers", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    listing = json.loads(done.stdout)
    assert listing["optimizers"] == []
    (broken,) = listing["broken"]
    assert (broken["distribution"], broken["version"]) == ("ed-train-lion", "0.1.0")
    assert said in broken["error"]
    assert f"this is {__version__}" in broken["error"]
    assert "pip install --upgrade" in broken["error"]
    assert broken["error"] in with_core.ed_train("--list-optimizers").stdout

    done = with_core.ed_train("--describe-optimizer", "lion")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 'lion' ")
    assert broken["error"] in done.stderr
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("requirement", [NEWER, OLDER])
def test_pip_refuses_a_plugin_for_another_core(requirement, lion_for, environment) -> None:
    core = environment("core")  # which others share: nothing is installed into it
    done = core.pip_install(str(lion_for(requirement)))
    assert done.returncode == 1
    assert "No matching distribution found for ed-train" in done.stderr
    assert core.ed_train("--list-optimizers").stdout.startswith("no optimizer is installed")


def test_pip_brings_the_core_along_with_a_plugin(distribution, new_environment) -> None:
    environment = new_environment()
    folders = {distribution(project).wheel.parent for project in ("core", "plugins/lion")}
    done = environment.pip_install(*(f"--find-links={folder}" for folder in folders), "ed-train-lion")
    assert done.returncode == 0, done.stderr
    assert environment.ed_train("--list-optimizers").stdout.startswith("lion ")
