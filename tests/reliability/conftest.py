"""Short runs of a micro model over real photos, in processes of their own, and what they come to undisturbed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reliability.driver import Runner

OPTIMIZERS = {
    "base": {"optimizer": "adamw", "lr": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 2},
    "text_encoder_overrides": {"optimizer": "lion", "lr": 1e-4, "lr_scheduler": "cosine"},
    "text_encoder_freezing": {"unfreeze_last_n_layers": 2},
}
RANDOM = {"cond_dropout": 0.3, "flip_p": 0.5, "clip_grad_norm": 1.0}
EVERY_STEP = {"ckpt_every_n_minutes": 1e-9}
"""Save as often as can be: each step's checkpoint is waited for when the next one's is due."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, micro_model: Path, photos: Path) -> dict[str, object]:
    """Settings that all runs of this folder have: eight steps in two epochs, saved at the end.

    Their cache is their own, so that no other test decides what is in it.
    """
    cache = tmp_path_factory.mktemp("cache")
    optimizers = tmp_path_factory.mktemp("settings") / "optimizer.json"
    optimizers.write_text(json.dumps(OPTIMIZERS))
    return {
        "resume_ckpt": micro_model,
        "data_root": photos,
        "cache_dir": cache,
        "optimizer_config": optimizers,
        "resolution": 64,
        "batch_size": 2,
        "max_epochs": 2,
        "sample_steps": 0,
        "log_step": 1,
        "disable_amp": True,
        **RANDOM,
    }


@pytest.fixture
def make_runner(world: dict[str, object], tmp_path: Path) -> Callable[..., Runner]:
    """``make_runner(name, **settings)``: a series of processes that train in one folder of runs."""

    def make(name: str = "runs", **settings: object) -> Runner:
        folder = tmp_path / name
        folder.mkdir()
        return Runner(folder, {**world, "logdir": folder / "logs", **settings})

    return make


@pytest.fixture
def runner(make_runner: Callable[..., Runner]) -> Runner:
    return make_runner()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, world: dict[str, object]) -> Callable[..., Path]:
    """``undisturbed(**settings)``: the checkpoint at the end of a run that nothing happened to; each is made once."""
    made: dict[str, Path] = {}

    def checkpoint(**settings: Any) -> Path:
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            runner = Runner(folder, {**world, "logdir": folder / "logs", **settings})
            runner.run()
            made[key] = runner.last
        return made[key]

    return checkpoint
