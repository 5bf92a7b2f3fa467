"""Every distribution, built once, and virtual environments to install them into."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from built_distributions import ROOT, Distribution, Environment, build


@pytest.fixture(scope="session")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Distribution]:
    """``distribution("plugins/lion")``, built when it is first asked for."""
    published, direct = (tmp_path_factory.mktemp(name) for name in ("published", "direct"))

    @cache
    def distribution(project: str) -> Distribution:
        folder = ROOT / project
        wheel, sdist = sorted(build(folder, published), key=lambda path: path.suffix == ".gz")
        (wheel_of_folder,) = build(folder, direct, "--wheel")
        return Distribution(folder, sdist, wheel, wheel_of_folder)

    return distribution


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to everything that is installed here but ed-train, its plugins and what points to them."""
    farm = tmp_path_factory.mktemp("libraries")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "ed_train" not in entry.name.replace("-", "_") and entry.suffix != ".pth":
            (farm / entry.name).symlink_to(entry)
    return farm


@pytest.fixture(scope="session")
def new_environment(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    """``new_environment()``: one without ed-train."""

    def new_environment() -> Environment:
        return Environment.create(tmp_path_factory.mktemp("environment"), libraries)

    return new_environment


@pytest.fixture(scope="session")
def environment(distribution, new_environment) -> Callable[..., Environment]:
    """``environment("core", "plugins/lion")``: one with these, for tests that install nothing more into it."""

    @cache
    def environment(*names: str) -> Environment:
        made = new_environment()
        wheels = [str(distribution(name).wheel) for name in names]
        done = made.pip_install(*wheels)  # with dependencies: a wrong or missing one is an error, as there is no index
        assert done.returncode == 0, done.stderr
        return made

    return environment
