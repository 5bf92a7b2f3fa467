"""Installed as users install it: real wheels, in an environment where nothing else of ed-train exists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("pip", reason="builds and installs with pip, which uv's environments lack")

ROOT = Path(__file__).parents[1]
Command = Callable[..., subprocess.CompletedProcess[str]]


def pip_install(target: Path, *projects: str) -> None:
    """Build wheels of folders of this repository and install them, without a network and without dependencies."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    folders = [str(ROOT / project) for project in projects]
    done = subprocess.run([*command, "--target", str(target), *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to everything that is installed here but ed-train, its plugins and what points to them."""
    farm = tmp_path_factory.mktemp("dependencies")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "ed_train" not in entry.name.replace("-", "_") and entry.suffix != ".pth":
            (farm / entry.name).symlink_to(entry)
    return farm


@pytest.fixture(scope="module")
def core_and_lion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("core-and-lion")
    pip_install(target, "core", "plugins/lion")
    return target


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sgd")
    pip_install(target, "examples/plugin-sgd")
    return target


@pytest.fixture
def ed_train(core_and_lion: Path, dependencies: Path, tmp_path: Path) -> Command:
    """``ed_train("--flag", plugins=[folder])``: the command with core, lion and these, in an empty folder."""

    def ed_train(*arguments: str, plugins: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(map(str, (core_and_lion, *plugins, dependencies)))
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-S", "-m", "ed_train", *arguments]  # -S: without this environment's packages
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )

    return ed_train


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert (done.returncode, done.stderr) == (0, "")
    return {row["name"]: row["distribution"] for row in json.loads(done.stdout)["optimizers"]}


def test_core_and_lion_list_lion_alone(ed_train) -> None:
    assert listed(ed_train("--list-optimizers", "--json")) == {"lion": "ed-train-lion"}
    (line,) = ed_train("--list-optimizers").stdout.splitlines()
    assert line.startswith("lion  ed-train-lion 0.")


@pytest.mark.parametrize("optimizer", [{"base": {"optimizer": "adamw8bit"}}, {}, None])
def test_adamw8bit_names_the_distribution_to_install(optimizer, ed_train, tmp_path) -> None:
    arguments = ["--resume_ckpt", "owner/model", "--data_root", "."]
    if optimizer is not None:
        (tmp_path / "optimizer.json").write_text(json.dumps(optimizer))
        arguments += ["--optimizer_config", "optimizer.json"]
    done = ed_train(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "needs the distribution ed-train-bnb, which is not installed: pip install ed-train-bnb" in line
    assert "(installed: lion)" in line


def test_freezing_names_the_distribution_to_install(ed_train, tmp_path) -> None:
    optimizer = {"base": {"optimizer": "lion"}, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}}
    (tmp_path / "optimizer.json").write_text(json.dumps(optimizer))
    done = ed_train("--resume_ckpt", "owner/model", "--data_root", ".", "--optimizer_config", "optimizer.json")
    assert done.returncode == 2
    assert "pip install ed-train-freezing" in done.stderr


def test_the_wheel_has_types_and_license_and_no_tests(core_and_lion) -> None:
    assert (core_and_lion / "ed_train" / "py.typed").is_file()
    assert (core_and_lion / "ed_train_lion" / "py.typed").is_file()
    assert not [path for path in core_and_lion.rglob("test_*.py") if "ed_train" in str(path.relative_to(core_and_lion))]
    for name in ("ed_train", "ed_train_lion"):
        (metadata,) = core_and_lion.glob(f"{name}-*.dist-info/METADATA")
        assert "License-Expression: Apache-2.0" in metadata.read_text(encoding="utf-8")


# A plugin from outside


def test_the_plugin_from_outside_is_under_40_lines() -> None:
    sources = list((ROOT / "examples" / "plugin-sgd").rglob("*.py"))
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources) < 40


def test_the_plugin_from_outside_is_listed(ed_train, sgd) -> None:
    done = ed_train("--list-optimizers", "--json", plugins=(sgd,))
    assert listed(done) == {"lion": "ed-train-lion", "sgd": "ed-train-sgd"}


def test_the_plugin_from_outside_is_configured(ed_train, sgd, tmp_path) -> None:
    (tmp_path / "optimizer.json").write_text('{"base": {"optimizer": "sgd", "momentum": 1.5, "nestorov": true}}')
    arguments = ["--resume_ckpt", "owner/model", "--data_root", ".", "--optimizer_config", "optimizer.json"]
    done = ed_train(*arguments, plugins=(sgd,))
    assert done.returncode == 2
    assert "base.momentum: got 1.5 (number); expected a number >= 0 and < 1" in done.stderr
    assert "base.nestorov: unknown key; did you mean 'nesterov'?" in done.stderr


def test_the_plugin_from_outside_trains(ed_train, sgd, micro_model, photos, tmp_path) -> None:
    optimizer = {
        "base": {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.8, "nesterov": True},
        "text_encoder_overrides": {"optimizer": "lion", "lr": 1e-6},
    }
    (tmp_path / "optimizer.json").write_text(json.dumps(optimizer))
    settings = {
        "resume_ckpt": micro_model, "data_root": photos, "resolution": 64, "max_epochs": 1, "sample_steps": 0,
        "optimizer_config": "optimizer.json", "disable_amp": "true", "run_name": "outside",
    }  # fmt: skip
    done = ed_train(*(f"--{key}={value}" for key, value in settings.items()), plugins=(sgd,))
    assert done.returncode == 0, done.stderr
    assert "momentum 0.8" in done.stdout
    assert "nesterov true" in done.stdout
    checkpoints = list((tmp_path / "logs").rglob("unet/*.safetensors"))
    assert len(checkpoints) == 1
