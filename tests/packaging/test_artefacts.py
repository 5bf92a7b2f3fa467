"""What is in each sdist and wheel: the same modules from either way, types, licence, README, true dependencies."""

from __future__ import annotations

import ast
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from built_distributions import ROOT, Distribution, build, projects
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

pytestmark = pytest.mark.slow
every_project = pytest.mark.parametrize("project", projects())
published = pytest.mark.parametrize("project", [p for p in projects() if not p.startswith("examples/")])


def files_of_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def names_in_sdist(sdist: Path) -> set[str]:
    """Names without the folder that holds everything."""
    with tarfile.open(sdist) as archive:
        names = [member.name.split("/", 1) for member in archive.getmembers()]
    assert {top for top, _ in names} == {sdist.name.removesuffix(".tar.gz")}
    return {name for _, name in names}


def metadata_of(built: Distribution) -> Message:
    (text,) = [data for name, data in files_of_wheel(built.wheel).items() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(text.decode())


def source_files(folder: Path) -> set[str]:
    """Every file of a folder but bytecode, relative to the folder's parent."""
    files = {file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    return {str(file.relative_to(folder.parent)) for file in files}


def runtime_imports(package: Path) -> Iterator[str]:
    """The top-level names that the modules of a package import, those only for type checkers left out."""
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for block in [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]:
            block.body = [ast.Pass()]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_every_distribution_is_found() -> None:
    assert {"core", "plugins/lion", "examples/plugin-sgd"} <= set(projects())


@every_project
def test_the_wheel_has_the_package_and_nothing_else(project, distribution) -> None:
    built = distribution(project)
    names = set(files_of_wheel(built.wheel))
    modules = {name for name in names if ".dist-info/" not in name}
    assert modules == source_files(built.folder / "src" / built.package)
    info = {name.partition(".dist-info/")[2] for name in names - modules}
    assert info == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


@every_project
def test_a_wheel_from_the_sdist_is_the_wheel_of_the_folder(project, distribution) -> None:
    built = distribution(project)
    assert files_of_wheel(built.wheel) == files_of_wheel(built.wheel_of_folder)
    assert built.wheel.name == built.wheel_of_folder.name
    assert built.wheel.name.endswith("-py3-none-any.whl")


@every_project
def test_the_sdist_has_sources_and_tests_and_nothing_else(project, distribution) -> None:
    built = distribution(project)
    names = names_in_sdist(built.sdist)
    # hatchling adds .gitignore, so that a wheel made from the sdist leaves out the same as one made from the folder.
    around = {"PKG-INFO", "README.md", "LICENSE", "pyproject.toml", ".gitignore"}
    tests = built.folder / "tests"
    assert names == around | source_files(built.folder / "src") | (source_files(tests) if tests.is_dir() else set())
    assert any(name.startswith("tests/test_") for name in names) or not project.startswith("plugins/")


def test_what_lies_about_in_a_folder_is_not_published(tmp_path) -> None:
    folder = shutil.copytree(ROOT / "plugins" / "lion", tmp_path / "lion")
    stray = ("notes.txt", ".env", "tests/__pycache__/x.pyc", "src/ed_train_lion/__pycache__/x.pyc", "dist/old.whl")
    for name in stray:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stray")
    wheel, sdist = sorted(build(folder, tmp_path / "out"), key=lambda path: path.suffix == ".gz")
    assert not [name for name in names_in_sdist(sdist) if name in stray or "__pycache__" in name]
    assert not [name for name, data in files_of_wheel(wheel).items() if data == b"stray"]


@every_project
def test_licence_and_description(project, distribution) -> None:
    built = distribution(project)
    metadata = metadata_of(built)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    (licence,) = [data for name, data in files_of_wheel(built.wheel).items() if name.endswith("/LICENSE")]
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (built.folder / "README.md").read_text(encoding="utf-8").strip()
    assert metadata["Summary"].endswith(".")
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Keywords"]


@published
def test_what_an_index_shows(project, distribution) -> None:
    built = distribution(project)
    metadata = metadata_of(built)
    given = metadata.get_all("Classifier") or []
    assert "Typing :: Typed" in given
    assert set(given) <= classifiers
    assert not [c for c in given if c.startswith("License ::")]  # License-Expression says it, and says it alone
    links = re.findall(r"\]\((?!https://)[^)]*\)", str(metadata.get_payload()))
    assert links == [], "a link into the repository leads nowhere on an index's page"


@every_project
def test_requirements_are_what_is_imported(project, distribution) -> None:
    built = distribution(project)
    required = [Requirement(line) for line in metadata_of(built).get_all("Requires-Dist") or []]
    names = {canonicalize_name(requirement.name) for requirement in required}
    # Editable distributions own no module, and wandb, an extra, is not installed here.
    owners = packages_distributions() | {"ed_train": ["ed-train"], "wandb": ["wandb"]}
    imported = set(runtime_imports(built.folder / "src")) - sys.stdlib_module_names - {built.package}
    missing = {name for name in imported if not names & {canonicalize_name(owner) for owner in owners.get(name, ())}}
    assert missing == set()


@pytest.mark.parametrize("project", [p for p in projects() if p != "core"])
def test_a_plugin_says_which_core_it_needs(project, distribution) -> None:
    core = metadata_of(distribution("core"))["Version"]
    required = map(Requirement, metadata_of(distribution(project)).get_all("Requires-Dist"))
    (ours,) = [requirement for requirement in required if requirement.name == "ed-train"]
    assert core in ours.specifier
    assert {specifier.operator for specifier in ours.specifier} == {">=", "<"}


@published
def test_types_are_shipped(project, distribution) -> None:
    built = distribution(project)
    assert f"{built.package}/py.typed" in files_of_wheel(built.wheel)
