"""What every source file keeps to: small modules and functions, documented names, no optimizer known by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ed_train
import pytest
from ed_train import hookspecs
from ed_train.api import installed_plugins

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "src"
SOURCES = sorted(
    path
    for folder in (CORE, ROOT / "plugins", ROOT / "examples", ROOT / "benchmarks", ROOT / "docs")
    for path in folder.rglob("*.py")
    if not {"build", "dist", "__pycache__"} & set(path.parts)
)
MAX_MODULE, MAX_FUNCTION = 300, 60


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_sources_are_found() -> None:
    assert {"cli.py", "registry.py", "make_tiny_sd.py"} <= {path.name for path in SOURCES}


def test_no_module_is_longer_than_300_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_MODULE} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in SOURCES
        for function in functions(path)
    }
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


def test_every_public_name_has_a_docstring() -> None:
    documented_elsewhere = {"Fraction", "NonNegative", "Positive", "Probability"}  # annotations: data, not objects
    without = [name for name in ed_train.__all__ if not (getattr(ed_train, name).__doc__ or "").strip()]
    assert [name for name in without if name not in documented_elsewhere] == []
    assert ed_train.__all__ == sorted(ed_train.__all__)


HOOKS = [name for name in vars(hookspecs) if name.startswith("ed_")]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_a_docstring_with_a_complete_plugin(name) -> None:
    docstring = getattr(hookspecs, name).__doc__
    assert "A complete plugin" in docstring
    assert f"def {name}()" in docstring
    assert "@hookimpl" in docstring


@pytest.mark.parametrize("name", HOOKS)
def test_the_plugin_in_a_hooks_docstring_works(name, tmp_path, monkeypatch) -> None:
    from ed_train.registry import load_registry

    lines = getattr(hookspecs, name).__doc__.split("::\n")[1].splitlines()
    source = "\n".join(line.removeprefix(" " * 8) for line in lines if line.startswith(" " * 8) or not line.strip())
    module = f"{name}_of_a_docstring"
    (tmp_path / f"{module}.py").write_text(source)
    metadata = tmp_path / "docstring-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: docstring\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[ed_train]\nexample = {module}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry()
    assert registry.broken == ()
    offered = {o.spec.name for o in registry if o.distribution == "docstring"}
    offered |= {p.policy.section for p in registry.freeze_policies if p.distribution == "docstring"}
    assert offered == {"sgd" if name == "ed_register_optimizers" else "attention_only"}


def test_the_core_knows_no_optimizer_by_name() -> None:
    names = {o.spec.name for o in installed_plugins()}
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}": node.value
        for path in CORE.rglob("*.py")
        if path.name != "first_party.py"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {}


def test_the_core_imports_no_plugin_and_no_optimizer_library() -> None:
    libraries = {o.spec.library.replace("-", "_") for o in installed_plugins()} - {"", "torch"}
    imported = {
        name.partition(".")[0]
        for path in CORE.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert "torch" in imported
    assert imported & libraries == set()
    assert [name for name in imported if name.startswith("ed_train_")] == []
