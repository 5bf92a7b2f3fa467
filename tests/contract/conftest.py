"""The distributions of wrong plugins, as pip would leave them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

WRONG = Path(__file__).with_name("wrong")
DISTRIBUTIONS = {
    "wrong-optimizers": ("wrong_optimizers", "ed-train"),
    "wrong-policies": ("wrong_policies", "ed-train"),
    "wrong-imports": ("wrong_imports", "ed-train"),
    "wrong-requirements": ("wrong_requirements", "pluggy"),
}
"""Distribution to the module of its entry point and what it requires."""


@pytest.fixture(scope="module", autouse=True)
def wrong_plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install all wrong plugins in this process, and take them out again."""
    from ed_train.api import installed_plugins

    site = tmp_path_factory.mktemp("site")
    for distribution, (module, requires) in DISTRIBUTIONS.items():
        metadata = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.0\nRequires-Dist: {requires}\n")
        (metadata / "entry_points.txt").write_text(f"[ed_train]\nplugin = {module}\n")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(WRONG)
        patch.syspath_prepend(site)
        installed_plugins.cache_clear()
        yield
    torch.use_deterministic_algorithms(False)  # one of the faults
    installed_plugins.cache_clear()
    for name in {path.stem for path in WRONG.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]
