"""``--list-optimizers``: what can be used, what cannot and why, and what could be installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ed_train.api import installed_plugins
from ed_train.commands.list_optimizers import list_optimizers, why_unusable
from ed_train.registry import OptimizerRegistry

PLUGIN = """
from dataclasses import dataclass
from ed_train import OptimizerSpec, hookimpl

@dataclass(frozen=True)
class Config:
    lr: float = 1e-3

@hookimpl
def ed_register_optimizers():
    return [OptimizerSpec(name={name!r}, summary="mine", config_type=Config, build=print, devices={devices!r})]
"""
List = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., None]:
    """``install("my-lion", "lion")``: a distribution, version 1.2, that offers an optimizer."""

    def install(distribution: str, name: str, devices: tuple[str, ...] = (), begin: str = "") -> None:
        module = distribution.replace("-", "_")
        metadata = tmp_path / f"{module}-1.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.2\n")
        (metadata / "entry_points.txt").write_text(f"[ed_train]\nit = {module}\n")
        (tmp_path / f"{module}.py").write_text(begin + PLUGIN.format(name=name, devices=devices))

    return install


@pytest.fixture
def listing(tmp_path: Path) -> List:
    """Run the command in a process of its own, which finds what was installed."""

    def listing(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ed_train", "--list-optimizers", *arguments]
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, **environment}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        return done

    return listing


def as_json(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole object, and its optimizers by their names."""
    listed = json.loads(done.stdout)
    return listed, {row["name"]: row for row in listed["optimizers"]}


def test_every_row_of_the_json_says_whether_it_can_be_used(listing) -> None:
    listed, rows = as_json(listing("--json"))
    assert listed.keys() == {"optimizers", "broken", "slow", "not_installed", "left_out"}
    assert rows["lion"].items() >= {"distribution": "ed-train-lion", "usable": True, "reason": None}.items()
    assert listed["broken"] == listed["not_installed"] == listed["left_out"] == []


def test_an_optimizer_without_its_device_is_not_among_the_usable_ones(install, listing) -> None:
    install("my-optimizer", "mine", devices=("mps",))
    if sys.platform == "darwin":
        pytest.skip("this machine may have the device")
    lines = listing().stdout.splitlines()
    assert "not usable: mine (my-optimizer 1.2): runs on mps only; no MPS device found" in lines
    assert not any(line.startswith("mine ") for line in lines)
    row = as_json(listing("--json"))[1]["mine"]
    assert row["devices"] == ["mps"]
    assert (row["usable"], row["reason"]) == (False, "runs on mps only; no MPS device found")


def test_one_of_several_devices_is_enough(install, listing) -> None:
    install("my-optimizer", "mine", devices=("mps", "cpu"))
    assert as_json(listing("--json"))[1]["mine"]["usable"] is True


def test_a_device_that_cannot_be_looked_for_is_not_ruled_out(install, listing) -> None:
    install("my-optimizer", "mine", devices=("xpu",))
    assert as_json(listing("--json"))[1]["mine"]["usable"] is True


def test_cuda_is_found_where_torch_finds_it() -> None:
    import torch

    reason = why_unusable(installed_plugins().find("paged_lion8bit"))
    assert reason == "" or not torch.cuda.is_available()
    if reason:
        assert reason == "runs on cuda only; no CUDA device found"


@pytest.mark.skipif(sys.platform == "win32", reason="looks for a library of the driver there")
def test_the_drivers_program_counts_as_a_trace_of_a_device(tmp_path, listing) -> None:
    (tmp_path / "nvidia-smi").write_text("")
    assert as_json(listing("--json", PATH=str(tmp_path)))[1]["paged_lion8bit"]["usable"] is True


def test_slow_plugins_are_shown_with_their_time_and_reason(install, listing) -> None:
    install("my-optimizer", "mine", begin="import numpy, time; time.sleep(0.3)\n")
    (line,) = [line for line in listing().stdout.splitlines() if line.startswith("slow: my-optimizer ")]
    assert line.startswith("slow: my-optimizer 1.2 (it): its import takes ")
    assert "numpy" in line
    listed, rows = as_json(listing("--json"))
    (slow,) = (plugin for plugin in listed["slow"] if plugin["distribution"] == "my-optimizer")
    assert (slow["version"], slow["entry_point"]) == ("1.2", "it")
    assert slow["loads"] == ["numpy"]
    assert slow["seconds"] > 0.3
    assert rows["mine"]["usable"] is True


def test_what_was_left_out_is_named_and_not_called_missing(listing) -> None:
    done = listing("--no-plugin", "lion")
    assert "left out: ed-train-lion: by ED_TRAIN_PLUGINS or --no-plugin" in done.stdout.splitlines()
    assert "not installed: " not in done.stdout
    listed, rows = as_json(listing("--json", ED_TRAIN_PLUGINS="lion"))
    assert rows.keys() == {"lion"}
    assert "ed-train-bnb" in listed["left_out"]
    assert listed["not_installed"] == []


def test_broken_plugins_are_not_called_missing(install, listing) -> None:
    install("ed-train-lion", "lion", begin="import does_not_exist\n")
    listed, rows = as_json(listing("--json"))
    assert "lion" not in rows
    assert listed["broken"][0]["error"] == "ModuleNotFoundError: No module named 'does_not_exist'"
    assert listed["not_installed"] == []


def test_a_name_that_two_plugins_offer_is_shown_as_it_has_to_be_written(install, listing) -> None:
    install("my-lion", "lion")
    lines = listing().stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert "lion" not in names
    assert {"ed-train-lion:lion", "my-lion:lion"} <= set(names)
    (line,) = [line for line in lines if line.startswith("ambiguous: ")]
    assert line.startswith("ambiguous: lion: offered by ed-train-lion ")
    assert line.endswith(" and my-lion 1.2; choose with ed-train-lion:lion or my-lion:lion")
    assert {"ed-train-lion:lion", "my-lion:lion"} <= as_json(listing("--json"))[1].keys()


def without(*distributions: str) -> OptimizerRegistry:
    """The installed plugins as they would be without some."""
    registry = installed_plugins()
    return replace(
        registry,
        optimizers=tuple(o for o in registry if o.distribution not in distributions),
        freeze_policies=tuple(p for p in registry.freeze_policies if p.distribution not in distributions),
        versions={name: version for name, version in registry.versions.items() if name not in distributions},
    )


def test_families_that_are_not_installed_come_with_a_command(capsys) -> None:
    registry = without("ed-train-prodigy", "ed-train-freezing")
    list_optimizers(registry, as_json=False)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "not installed: prodigy: pip install ed-train-prodigy",
        "not installed: text_encoder_freezing, unet_freezing: pip install ed-train-freezing",
    ]
    list_optimizers(registry, as_json=True)
    missing = json.loads(capsys.readouterr().out)["not_installed"]
    assert [row["name"] for row in missing] == ["prodigy", "text_encoder_freezing", "unet_freezing"]
    assert missing[0] == {
        "name": "prodigy",
        "distribution": "ed-train-prodigy",
        "install": "pip install ed-train-prodigy",
    }


def test_an_old_distribution_that_lacks_an_optimizer_is_to_be_upgraded(capsys) -> None:
    registry = installed_plugins()
    old = replace(registry, optimizers=tuple(o for o in registry if o.spec.name != "lion8bit"))
    list_optimizers(old, as_json=False)
    assert "not installed: lion8bit: pip install --upgrade ed-train-bnb" in capsys.readouterr().out.splitlines()
