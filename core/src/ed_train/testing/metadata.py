"""What both contracts check without building anything: imports, texts and the type of the options."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from typing import Any

from ed_train.config.describe import annotations_of, find_metadata
from ed_train.entry_points import EntryPoint, find_entry_points, normalized
from ed_train.hookspecs import PROJECT
from ed_train.registry import HEAVY
from ed_train.requirement import split_requirement
from ed_train.specs import Help

LONGEST_SUMMARY = 100

# Hooks are called too, since --list-optimizers calls them.
_LOAD = """
import json, sys
sys.path[:] = {path!r}
from ed_train.entry_points import EntryPoint
for entry in {entries!r}:
    plugin = EntryPoint(*entry).load()
    for hook in ("ed_register_optimizers", "ed_register_freeze_policies"):
        list(getattr(plugin, hook, list)())
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def check_imports(distribution: str, library: str = "") -> None:
    """Fail if loading a distribution's plugins imports something that takes long, its own library included."""
    entries = [tuple(entry) for entry in _entry_points(distribution)]
    code = _LOAD.format(path=sys.path, entries=entries)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{distribution} cannot be imported in a process of its own:\n{done.stderr}"
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    heavy = sorted(imported & (HEAVY | _modules_of(library)))
    assert not heavy, (
        f"{distribution} imports {', '.join(heavy)} when it is loaded, and every command of ed-train waits for that; "
        "import it inside the function that builds or applies, and under TYPE_CHECKING for annotations"
    )


def check_summary(owner: str, summary: str) -> None:
    """Fail if a summary is not one line."""
    is_line = bool(summary.strip()) and "\n" not in summary and len(summary) <= LONGEST_SUMMARY
    assert is_line, f"{owner}: summary {summary!r}: give one line of at most {LONGEST_SUMMARY} characters"


def check_help(config_type: type[Any]) -> None:
    """Fail if an option does not say in one line what it does."""
    helps = {option: find_metadata(a, Help) for option, a in annotations_of(config_type).items()}
    without = [option for option, found in helps.items() if not found or not found.text.strip() or "\n" in found.text]
    assert not without, (
        f"{config_type.__name__}: no one line of help for {', '.join(without)}; "
        'write it into the annotation: Annotated[float, Help("what it does")]'
    )


def check_frozen(config_type: type[Any]) -> None:
    """Fail if the options could be changed after they were checked."""
    frozen = config_type.__dataclass_params__.frozen
    assert frozen, f"{config_type.__name__} can be changed after it was checked; write @dataclass(frozen=True)"


def check_requirements(distribution: str, library: str) -> None:
    """Fail if installing a distribution would not install ed-train and the optimizer's library."""
    split = [split_requirement(line) for entry in _entry_points(distribution) for line in entry.requires]
    required = {normalized(name) for name, _ in filter(None, split)}
    missing = [name for name in ("ed-train", library) if name and normalized(name) not in required]
    assert not missing, (
        f"{distribution} does not depend on {' and '.join(missing)}; add it to dependencies in pyproject.toml, "
        "and install the plugin again"
    )


def _entry_points(distribution: str) -> list[EntryPoint]:
    return [entry for entry in find_entry_points(PROJECT) if entry.distribution == distribution]


def _modules_of(library: str) -> set[str]:
    """The names under which a distribution's packages are imported."""
    by_module: Iterable[tuple[str, list[str]]] = packages_distributions().items()
    return {module for module, owners in by_module if library and normalized(library) in map(normalized, owners)}
