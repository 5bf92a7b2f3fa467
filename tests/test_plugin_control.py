"""Which plugins are loaded, and what is said about those that are slow, left out or made for another ed-train."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ed_train import ConfigError, __version__
from ed_train.registry import SLOW_IMPORT, load_registry

Install = Callable[..., None]

PLUGIN = """
from dataclasses import dataclass
from typing import Annotated

from ed_train import Fraction, Help, OptimizerSpec, Positive, hookimpl


@dataclass(frozen=True)
class Config:
    lr: Annotated[Positive, Help("learning rate")] = 1e-3
    momentum: Annotated[Fraction, Help("momentum factor")] = 0.0


def build(params, config):
    import torch

    return torch.optim.SGD(params, lr=config.lr, momentum=config.momentum)


@hookimpl
def ed_register_optimizers():
    return [OptimizerSpec(name=__name__, summary="SGD once more", config_type=Config, build=build)]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(name, source)``: a distribution with one module and one entry point of that name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str = PLUGIN, requires: str = "") -> None:
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        requirement = f"Requires-Dist: {requires}\n" if requires else ""
        text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n{requirement}\nThe README\n"
        (metadata / "METADATA").write_text(text)
        (metadata / "entry_points.txt").write_text(f"[ed_train]\n{name} = {name}\n")
        (tmp_path / f"{name}.py").write_text(source)

    return install


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The real command, with the plugins of `install` and with compiled modules kept, as on a user's machine."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONPYCACHEPREFIX": str(tmp_path / "pyc")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        program = Path(sys.executable).parent / "ed-train"
        return subprocess.run(
            [program, *arguments], env={**environment, **variables}, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("spelling", ["lion", "ed-train-lion", "ed_train.lion", "LION"])
def test_only_these(spelling, monkeypatch) -> None:
    monkeypatch.setenv("ED_TRAIN_PLUGINS", f" {spelling}, freezing,")
    registry = load_registry()
    assert registry.names == ["lion"]
    assert len(registry.freeze_policies) == 2
    assert set(registry.versions) == {"ed-train-lion", "ed-train-freezing"}
    assert "ed-train-bnb" in registry.left_out


def test_none_of_them(monkeypatch) -> None:
    monkeypatch.setenv("ED_TRAIN_PLUGINS", "")
    registry = load_registry()
    assert (registry.names, registry.freeze_policies, registry.broken) == ([], (), ())


def test_without_some(monkeypatch) -> None:
    assert "lion" not in load_registry(["lion"]).names
    monkeypatch.setenv("ED_TRAIN_PLUGINS", "lion,bnb")
    assert load_registry(["ed-train-lion"]).names == ["adamw8bit", "lion8bit", "paged_adamw8bit", "paged_lion8bit"]


def test_what_is_left_out_is_not_even_imported(install, monkeypatch) -> None:
    install("never_imported", "raise RuntimeError")
    assert [b.distribution for b in load_registry().broken] == ["never-imported"]
    assert load_registry(["never_imported"]).broken == ()
    del sys.modules["ed_train_lion"]
    load_registry(["lion"])
    assert "ed_train_lion" not in sys.modules


def test_a_name_that_is_not_installed(monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"--no-plugin: no installed plugin is called 'lin'; installed: ed-train"):
        load_registry(["lin"])
    monkeypatch.setenv("ED_TRAIN_PLUGINS", "lion,nothing")
    with pytest.raises(ConfigError, match="ED_TRAIN_PLUGINS: no installed plugin is called 'nothing'"):
        load_registry()


def test_asking_for_what_is_left_out_says_so() -> None:
    with pytest.raises(ConfigError, match=r"'lion' is in ed-train-lion, which ED_TRAIN_PLUGINS or --no-plugin leaves"):
        load_registry(["lion"]).find("lion")


def test_the_flag_and_the_variable_on_the_command_line(command, tmp_path) -> None:
    out = command("--list-optimizers", "--json", "--no-plugin", "lion", "--no-plugin=bnb").stdout
    names = {o["name"] for o in json.loads(out)["optimizers"] if o.get("usable", True)}
    assert "adamw" in names
    assert names.isdisjoint({"lion", "adamw8bit"})
    (tmp_path / "optimizer.json").write_text('{"text_encoder_freezing": {"unfreeze_last_n_layers": 1}}')
    done = command("--optimizer_config", str(tmp_path / "optimizer.json"), ED_TRAIN_PLUGINS="lion")
    assert done.returncode == 2
    assert "text_encoder_freezing: needs the distribution ed-train-freezing, which ED_TRAIN_PLUGINS" in done.stderr
    assert "'adamw8bit' is in ed-train-bnb, which ED_TRAIN_PLUGINS or --no-plugin leaves out" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("requires", ["ed-train>=99", "ed_train (<0.1)", "Ed-Train[wandb] ==98.*"])
def test_a_plugin_for_another_ed_train_is_not_imported(requires, install) -> None:
    install("for_another_core", "raise SystemExit('imported')", requires)
    (broken,) = load_registry().broken
    assert broken.distribution == "for-another-core"
    assert broken.error.startswith("PluginError: needs ed-train")
    assert f"and this is {__version__}: pip install --upgrade ed-train for-another-core" in broken.error


@pytest.mark.parametrize("requires", ["ed-train>=0.1,<99", "ed-train", "ed-train>=99; extra == 'x'", "torch>=99"])
def test_a_plugin_for_this_ed_train_is_loaded(requires, install, request) -> None:
    install("for_this_core", requires=requires)
    registry = load_registry()
    sys.modules.pop("for_this_core")
    assert registry.broken == ()
    assert "for_this_core" in registry.names


def test_fifty_plugins_and_three_bad_ones(install, command) -> None:
    for number in range(50):
        install(f"well_behaved_{number}")
    install("it_raises", "raise ValueError('out of order')")
    install("it_exits", "import sys; sys.exit('bye')")
    install("it_sleeps", "import time; time.sleep(0.6)\n" + PLUGIN)
    install("it_loads_numpy", "import numpy\n" + PLUGIN)
    out = command("--list-optimizers").stdout
    listing = json.loads(command("--list-optimizers", "--json").stdout)
    usable = {o["name"] for o in listing["optimizers"]}
    assert {f"well_behaved_{number}" for number in range(50)} | {"it_sleeps", "it_loads_numpy", "adamw"} <= usable
    assert "it-raises" in out
    assert "ValueError: out of order" in out
    assert "SystemExit: bye" in out
    slow = {entry["distribution"]: entry for entry in listing["slow"]}
    assert slow["it-sleeps"]["seconds"] >= 0.6
    assert {name: entry["loads"] for name, entry in slow.items() if entry["loads"]} == {"it-loads-numpy": ["numpy"]}
    assert all(entry["loads"] or entry["seconds"] > SLOW_IMPORT for entry in slow.values()), "on a busy machine others"
    assert re.search(r"^slow: it-sleeps .*: its import takes [\d.]+ s; every command waits for it$", out, re.MULTILINE)
    assert "loads numpy" in out


@pytest.mark.slow
def test_listing_fifty_plugins_costs_little_more_than_pythons_start(install, command) -> None:
    """The target is 100 ms on an idle machine; here it is a multiple of the interpreter's start, in processor time."""
    for number in range(50):
        install(f"well_behaved_{number}")
    command("--list-optimizers")  # compiles
    listing, bare = [], []
    for _ in range(9):
        started = processor_seconds()
        assert command("--list-optimizers").returncode == 0
        between = processor_seconds()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        listing.append(between - started)
        bare.append(processor_seconds() - between)
    print(f"listing {min(listing) * 1e3:.0f} ms, bare interpreter {min(bare) * 1e3:.0f} ms")
    assert min(listing) < 15 * min(bare)


def processor_seconds() -> float:
    """That all processes which this one began and which have ended have taken, user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
