"""Fixtures for configuration tests: files in an empty folder, resolved without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ed_train.config.load import load_config
from ed_train.config.run import RunConfig
from ed_train.errors import ConfigError
from ed_train.registry import OptimizerRegistry, load_registry

Resolve = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def registry() -> OptimizerRegistry:
    return load_registry()


@pytest.fixture
def resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: OptimizerRegistry) -> Resolve:
    """``resolve(train, optimizer, **flags)``: objects are written as JSON, texts as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()

    def resolve(train: Any = None, optimizer: Any = None, registry: Any = registry, **flags: str) -> RunConfig:
        train = {"resume_ckpt": "owner/model"} if train is None else train
        if isinstance(train, dict):
            train = {"resume_ckpt": "owner/model", **train}
            if optimizer is not None:
                train = {"optimizer_config": "optimizer.json", **train}
        if optimizer is not None:
            (tmp_path / "optimizer.json").write_text(optimizer if isinstance(optimizer, str) else json.dumps(optimizer))
        path = tmp_path / "train.json"
        path.write_text(train if isinstance(train, str) else json.dumps(train, indent=1))
        return load_config(flags, registry, path)

    return resolve


@pytest.fixture
def problems(resolve: Resolve) -> Callable[..., list[str]]:
    """As `resolve`, for what is wrong: the lines that a user sees."""

    def problems(*args: Any, **flags: Any) -> list[str]:
        with pytest.raises(ConfigError) as error:
            resolve(*args, **flags)
        return [str(p) for p in error.value.problems]

    return problems
