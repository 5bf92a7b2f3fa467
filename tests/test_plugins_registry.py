"""What the contract does not ask of the optimizers in this repository."""

from __future__ import annotations

import pytest
import torch
from ed_train import create_optimizer, list_optimizers
from ed_train.api import installed_plugins

INSTALLED = {f"{o.distribution}:{o.spec.name}": o for o in installed_plugins()}


def test_the_registry_is_listed() -> None:
    assert list_optimizers() == sorted({o.spec.name for o in INSTALLED.values()})
    assert len(INSTALLED) >= 1


@pytest.mark.parametrize("name", INSTALLED)
def test_building_prints_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    create_optimizer(name, torch.nn.Linear(8, 4).parameters())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", INSTALLED)
def test_the_summary_fits_a_line(name: str) -> None:
    assert len(INSTALLED[name].spec.summary) <= 100
