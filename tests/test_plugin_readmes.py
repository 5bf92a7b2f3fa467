"""Every plugin's README describes exactly the options that the plugin has; a new plugin folder is tested unasked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ed_train.api import installed_plugins
from ed_train.config.validate import validated
from ed_train.specs import option_names

FOLDERS = sorted(p.parent for p in (Path(__file__).parents[1] / "plugins").glob("*/pyproject.toml"))
ROW = re.compile(r"^\| `(?P<option>\w+)` \| [^|]+ \| `(?P<default>[^|]+)` \| [^|]+ \|$", re.MULTILINE)
NOT_OPTIONS = {"optimizer", "lr_scheduler", "lr_decay_steps", "lr_warmup_steps"}


def offered(distribution: str) -> dict[str, type[Any]]:
    """Name of each optimizer and section of a distribution, to the type of its options."""
    registry = installed_plugins()
    optimizers = {o.spec.name: o.spec.config_type for o in registry if o.distribution == distribution}
    sections = {
        p.policy.section: p.policy.config_type for p in registry.freeze_policies if p.distribution == distribution
    }
    return {**optimizers, **sections}


def tables(readme: str) -> dict[str, dict[str, Any]]:
    """Second-level heading to the options of the tables under it, each with its default."""
    sections = re.split(r"^## ", readme, flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0].strip(): {m["option"]: json.loads(m["default"]) for m in ROW.finditer(section)}
        for section in sections
    }


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_readme_has_every_option_with_its_default(folder: Path) -> None:
    expected = {
        name: {option: as_json(getattr(config_type(), option)) for option in option_names(config_type)}
        for name, config_type in offered(f"ed-train-{folder.name}").items()
    }
    assert expected, f"ed-train-{folder.name} is not installed; pip install -e plugins/{folder.name}"
    described = tables((folder / "README.md").read_text(encoding="utf-8"))
    assert {name: described.get(name) for name in expected} == expected


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_readme_says_how_to_install_and_configure(folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"pip install ed-train-{folder.name}" in readme
    assert "## Recommended settings" in readme
    assert re.search(r"^## Papers?$.*https://", readme, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_snippets_of_optimizer_json_are_valid(folder: Path) -> None:
    types = offered(f"ed-train-{folder.name}")
    snippets = re.findall(r"```json\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    for section, values in (item for snippet in snippets for item in json.loads(snippet).items()):
        config_type = types[values["optimizer"] if section == "base" else section]
        given = values if isinstance(values, dict) else {option_names(config_type)[0]: values}
        _, problems, warned = validated(config_type, {k: v for k, v in given.items() if k not in NOT_OPTIONS})
        assert (problems, warned) == ([], [])
