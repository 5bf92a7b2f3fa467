"""``ed-train --new-plugin NAME [DIR]``: write a working plugin that its author then fills in."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template

from ed_train import __version__
from ed_train.entry_points import find_entry_points, normalized
from ed_train.errors import ConfigError, Problem
from ed_train.first_party import DISTRIBUTION_OF_OPTIMIZER, DISTRIBUTION_OF_SECTION
from ed_train.hookspecs import PROJECT
from ed_train.registry import load_registry

FLAG = "--new-plugin"
TEMPLATES = Path(__file__).with_name("plugin_template")
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "src/$package/__init__.py": "__init__.py",
    "src/$package/optimizer.py": "optimizer.py",
    "src/$package/py.typed": "",
    "tests/test_contract.py": "test_contract.py",
}
"""Each file of a new plugin and its template; without one it is empty."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")
"""Stricter than the names of optimizers, since the distribution's name is made of it."""

LONGEST_NAME = 50
"""Beyond it, lines of the plugin would be longer than its own ruff allows."""


def new_plugin(name: str, folder: str | None = None) -> None:
    """Write a plugin with one optimizer, and print what to do with it.

    Args:
        name: the optimizer's name; the distribution becomes ``ed-train-NAME``.
        folder: where to write; must not exist or be empty. ``ed-train-NAME`` if None.

    Raises:
        ConfigError: the name is none or is taken, the folder is in use, or it cannot be written.
    """
    target = Path(_distribution(name) if folder is None else folder)
    problems = _problems_of_name(name)
    if folder is not None or not problems:
        problems += _problems_of_folder(target)
    if problems:
        raise ConfigError([Problem(FLAG, "", problem) for problem in problems])
    try:
        written = _write(target, _values(name))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([Problem(FLAG, "", f"{target}: cannot be written: {reason}; give another folder")]) from error
    print(_next_steps(name, target, written))


def _distribution(name: str) -> str:
    return normalized(f"ed-train-{name}")


def _problems_of_name(name: str) -> list[str]:
    if not _NAME.match(name):
        spelled = "_".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("0123456789_")
        example = f"e.g. {spelled}" if spelled else "e.g. my_optimizer"
        return [f"got {name!r}; expected lower-case letters, digits and single underscores between them, {example}"]
    if len(name) > LONGEST_NAME:
        return [f"{name!r} has {len(name)} characters; expected at most {LONGEST_NAME}"]
    if keyword.iskeyword(name):
        return [f"{name!r} is a word of the Python language; expected another name, e.g. {name}_optimizer"]
    offers = DISTRIBUTION_OF_OPTIMIZER | {o.spec.name: o.origin for o in load_registry()}
    if name in offers:
        return [f"{name!r} is taken: {offers[name]} has an optimizer of that name; choose another one"]
    installed = {entry.distribution for entry in find_entry_points(PROJECT)}
    reserved = {*DISTRIBUTION_OF_OPTIMIZER.values(), *DISTRIBUTION_OF_SECTION.values()}
    if _distribution(name) in installed | reserved:
        return [f"{name!r} is taken: there is a distribution {_distribution(name)} already; choose another name"]
    return []


def _problems_of_folder(target: Path) -> list[str]:
    try:
        if target.is_dir() and any(target.iterdir()):
            return [f"{target}: is not empty; give another folder: {FLAG} NAME DIR"]
        if not target.is_dir() and target.exists():
            return [f"{target}: is not a folder; give another one: {FLAG} NAME DIR"]
    except OSError as error:
        return [f"{target}: cannot be read: {error.strerror}; give another folder: {FLAG} NAME DIR"]
    return []


def _values(name: str) -> dict[str, str]:
    """What the templates leave open."""
    major, minor = map(int, __version__.split(".")[:2])
    return {
        "name": name,
        "class_name": "".join(part.capitalize() for part in name.split("_")),
        "distribution": _distribution(name),
        "package": f"ed_train_{name}",
        "core_versions": f">={major}.{minor},<{major}.{minor + 1}",
    }


def _write(target: Path, values: Mapping[str, str]) -> list[Path]:
    """Write every file; returns their paths below `target`."""
    written = []
    for path, template in FILES.items():
        relative = Path(Template(path).substitute(values))
        text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8") if template else ""
        file = target / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(text).substitute(values), encoding="utf-8", newline="\n")
        written.append(relative)
    return written


def _next_steps(name: str, target: Path, written: list[Path]) -> str:
    # Without ./ pip would look for a distribution of that name on PyPI.
    folder = str(target) if target.is_absolute() else f"./{target}"
    files = "\n".join(f"  {path}" for path in written)
    return f"""\
wrote {target}, a plugin with the optimizer {name!r}:
{files}

install it; -e: what you change counts at once
  pip install -e {shlex.quote(f"{folder}[test]")}
test it
  python -m pytest {shlex.quote(folder)}
see what users see
  ed-train --describe-optimizer {name}
train with it: "base": {{"optimizer": "{name}"}} in optimizer.json, and
  ed-train --config train.json

Your optimizer goes into optimizer.py, its options and what ed-train must know of it into __init__.py beside it.
docs/plugins.md of ed-train explains every line."""
