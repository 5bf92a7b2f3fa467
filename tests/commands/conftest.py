"""Fixtures for the commands that show something: run one, and install a plugin of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

PLUGIN = """
from dataclasses import dataclass
from ed_train import FreezePolicy, OptimizerSpec, hookimpl

@dataclass(frozen=True)
class Config:
    lr: float = 1e-3
"""
REGISTER = """
@hookimpl
def ed_register_optimizers():
    return [OptimizerSpec(name="homemade", summary="homemade", config_type=Config, build=build, **TRAITS)]
"""


@dataclass(frozen=True)
class Shown:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


@pytest.fixture
def command(flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Shown]:
    """``command("--check", resolution=64)``: run ``ed-train`` with the flags of the fixture and more."""
    from ed_train.cli import main

    def run(*words: str, **more: object) -> Shown:
        capsys.readouterr()
        given = {key: value for key, value in {**flags, **more}.items() if value is not None}
        status = main([*words, *(f"--{key}={value}" for key, value in given.items())])
        return Shown(status, *capsys.readouterr())

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``install(body, traits)``: a distribution with the optimizer homemade, whose `build` stands in the body."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)

    def install(body: str, traits: str = "{}") -> None:
        metadata = folder / "homemade-1.2.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: homemade\nVersion: 1.2\n")
        (metadata / "entry_points.txt").write_text("[ed_train]\nhomemade = homemade_plugin\n")
        source = f"{PLUGIN}\n{dedent(body)}\nTRAITS = {traits}\n{REGISTER}"
        (folder / "homemade_plugin.py").write_text(source)

    yield install
    sys.modules.pop("homemade_plugin", None)
