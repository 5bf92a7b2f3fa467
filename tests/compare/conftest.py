"""A configuration that is complete without a model or torch, and results that no run has to make first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ed_train.compare.collect import Curve, Result
from ed_train.compare.folder import Place, places
from ed_train.compare.learning_rates import parse_grid
from ed_train.compare.members import Member, make_members
from ed_train.config.load import load_config
from ed_train.config.run import RunConfig
from ed_train.registry import load_registry
from PIL import Image


class Setting:
    """A run's configuration, and the members of comparisons of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = load_registry()
        self.flags = {"resume_ckpt": "owner/model", "data_root": str(folder / "data"), "logdir": str(folder / "logs")}
        (folder / "data").mkdir()
        Image.new("RGB", (64, 64), "red").save(folder / "data" / "a red picture.png")
        self.notes: list[str] = []

    def optimizer(self, content: dict[str, Any], name: str = "optimizer.json") -> Path:
        path = self.folder / name
        path.write_text(json.dumps(content))
        return path

    @property
    def run(self) -> RunConfig:
        return load_config(self.flags, self.registry)

    def members(self, *names: str, grid: str | None = None) -> list[Member]:
        rates, problems = parse_grid(grid)
        assert not problems
        members, self.notes = make_members(self.run, names, rates, self.registry, self.flags, None)
        return members

    def places(self, *names: str) -> list[Place]:
        return places(self.folder / "comparison", self.members(*names))


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


@pytest.fixture
def made_up() -> Callable[..., Result]:
    """A finished run with these validation losses, one every 10 steps of 0.1 s each."""

    def make(label: str, *losses: float, status: str = "done", **more: Any) -> Result:
        steps = tuple(range(0, 10 * len(losses), 10))
        curve = Curve(steps, tuple(step / 10 for step in steps), losses)
        rates = Curve(steps, curve.seconds, (1e-5,) * len(steps))
        known = {"validation": {"val": curve}, "loss": curve, "effective_lr": {"unet": rates, "text_encoder": rates}}
        known |= {"step_seconds": 0.1, "train_seconds": float(len(losses)), "state_mb": 12.5, "memory_gb": 1.0}
        return Result(label, status, **{**known, **more})

    return make
