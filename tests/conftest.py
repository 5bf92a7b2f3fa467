"""Fixtures that many tests share: a micro model, real photos, and runs of the real command in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ed_train.train.session import Session


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable-Diffusion-shaped diffusers folder with random weights; text encoder of 4 layers."""
    from make_tiny_sd import make_tiny_sd

    folder = tmp_path_factory.mktemp("models") / "micro"
    make_tiny_sd("micro", folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight real square photos with captions."""
    from make_photos import make_photos

    folder = tmp_path_factory.mktemp("photos")
    make_photos(folder, count=8)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that all tests share, so that each picture is encoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def flags(micro_model: Path, photos: Path, cache: Path, tmp_path: Path) -> dict[str, str]:
    """The settings of a short run at 64 pixels, as flags."""
    return {
        "resume_ckpt": str(micro_model),
        "data_root": str(photos),
        "cache_dir": str(cache),
        "logdir": str(tmp_path / "logs"),
        "resolution": "64",
        "batch_size": "2",
        "max_epochs": "1",
        "sample_steps": "0",
        "log_step": "1",
        "disable_amp": "true",
    }


@pytest.fixture
def write_optimizer(tmp_path: Path, flags: dict[str, str]) -> Callable[[dict[str, object]], None]:
    """Write an optimizer.json and point the run's flags to it."""
    import json

    def write(content: dict[str, object]) -> None:
        (tmp_path / "optimizer.json").write_text(json.dumps(content))
        flags["optimizer_config"] = str(tmp_path / "optimizer.json")

    return write


@pytest.fixture
def run_cli(flags: dict[str, str]) -> Callable[..., int]:
    """Run ``ed-train`` with the flags of the fixture and more; returns the exit status."""
    from ed_train.cli import main

    def run(**more: object) -> int:
        return main([f"--{key}={value}" for key, value in {**flags, **more}.items() if value is not None])

    return run


@pytest.fixture
def make_session(flags: dict[str, str]) -> Iterator[Callable[..., Session]]:
    """A session that is ready for its first step."""
    from ed_train.config.load import load_config
    from ed_train.registry import load_registry
    from ed_train.train.setup import start

    opened = []

    def make(**more: object) -> Session:
        given = {key: str(value) for key, value in {**flags, **more}.items()}
        session, _ = start(load_config(given, load_registry()))
        opened.append(session)
        return session

    yield make
    for session in opened:
        session.close()
