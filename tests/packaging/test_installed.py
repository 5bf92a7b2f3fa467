"""Installed as users install it: into an environment where nothing else of ed-train exists, alone and together."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from built_distributions import ROOT, projects
from ed_train.first_party import DISTRIBUTION_OF_OPTIMIZER, DISTRIBUTION_OF_SECTION

pytestmark = pytest.mark.slow
PLUGINS = [project for project in projects() if project.startswith("plugins/")]
FAMILIES = sorted({*DISTRIBUTION_OF_OPTIMIZER.values(), *DISTRIBUTION_OF_SECTION.values()})


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Optimizer to distribution, of the output of --list-optimizers --json; nothing may be wrong."""
    assert (done.returncode, done.stderr) == (0, "")
    listing = json.loads(done.stdout)
    assert (listing["broken"], [plugin for plugin in listing["slow"] if plugin["loads"]]) == ([], [])
    return {row["name"]: row["distribution"] for row in listing["optimizers"]}


def in_family(distribution: str) -> dict[str, str]:
    return {name: owner for name, owner in DISTRIBUTION_OF_OPTIMIZER.items() if owner == distribution}


def arguments_of_a_run(folder: Path, optimizer: dict[str, object] | None) -> list[str]:
    run = ["--resume_ckpt", "owner/model", "--data_root", "."]
    if optimizer is None:
        return run
    (folder / "optimizer.json").write_text(json.dumps(optimizer))
    return [*run, "--optimizer_config", "optimizer.json"]


# The core alone


def test_the_core_alone_lists_nothing_and_says_what_to_install(environment) -> None:
    done = environment("core").ed_train("--list-optimizers")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("no optimizer is installed")
    assert set(re.findall(r"pip install ([\w-]+)", done.stdout)) == set(FAMILIES)
    assert listed(environment("core").ed_train("--list-optimizers", "--json")) == {}


@pytest.mark.parametrize("name", ["prodigy", "paged_lion8bit"])
def test_the_core_alone_says_which_distribution_has_an_optimizer(name, environment) -> None:
    done = environment("core").ed_train("--describe-optimizer", name)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.count(f"pip install {DISTRIBUTION_OF_OPTIMIZER[name]}") == 1


def test_the_core_alone_is_a_library(environment) -> None:
    program = "import ed_train; print(ed_train.list_optimizers()); ed_train.create_optimizer('lion', [])"
    done = environment("core").python("-c", program)
    assert done.stdout == "[]\n"
    assert "ConfigError: 'lion' needs the distribution ed-train-lion" in done.stderr.splitlines()[-1]


# With a family


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_core_and_one_family(plugin, environment, distribution) -> None:
    name = distribution(plugin).name
    installed = environment("core", plugin)
    assert listed(installed.ed_train("--list-optimizers", "--json")) == in_family(name)
    for optimizer in in_family(name):
        done = installed.ed_train("--describe-optimizer", optimizer)
        assert (done.returncode, done.stderr) == (0, "")
        assert name in done.stdout
    text = installed.ed_train("--list-optimizers").stdout
    assert set(re.findall(r"pip install ([\w-]+)", text)) == {*FAMILIES} - {name}


@pytest.mark.parametrize("plugin", [p for p in PLUGINS if p != "plugins/freezing"])
def test_an_optimizer_of_one_family_steps(plugin, environment, distribution) -> None:
    program = """
import sys, torch, ed_train
name = ed_train.list_optimizers()[0]
layer = torch.nn.Linear(4, 4)
optimizer = ed_train.create_optimizer(name, layer.parameters(), lr=1.0)
before = layer.weight.detach().clone()
layer(torch.ones(2, 4)).square().sum().backward()
optimizer.step()
print(name, not torch.equal(layer.weight, before))
"""
    done = environment("core", plugin).python("-c", program)
    assert done.returncode == 0, done.stderr
    name, moved = done.stdout.split()
    assert (DISTRIBUTION_OF_OPTIMIZER[name], moved) == (distribution(plugin).name, "True")


def test_all_families_together(environment) -> None:
    everything = environment("core", *PLUGINS)
    assert listed(everything.ed_train("--list-optimizers", "--json")) == DISTRIBUTION_OF_OPTIMIZER
    assert "pip install" not in everything.ed_train("--list-optimizers").stdout
    done = everything.python("-m", "pip", "check")
    assert not [line for line in done.stdout.splitlines() if "ed-train" in line]
    assert everything.python("-m", "ed_train", "--version").stdout == everything.ed_train("--version").stdout != ""


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_family_without_the_core_says_what_is_missing(plugin, distribution, new_environment) -> None:
    environment = new_environment()
    assert environment.pip_install("--no-deps", str(distribution(plugin).wheel)).returncode == 0
    done = environment.python("-c", f"import {distribution(plugin).package}")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'ed_train'"


# What a configuration needs and is not there


@pytest.mark.parametrize("optimizer", [{"base": {"optimizer": "adamw8bit"}}, {}, None])
def test_adamw8bit_names_the_distribution_to_install(optimizer, environment, tmp_path) -> None:
    done = environment("core", "plugins/lion").ed_train(*arguments_of_a_run(tmp_path, optimizer), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "needs the distribution ed-train-bnb, which is not installed: pip install ed-train-bnb" in line
    assert "(installed: lion)" in line


def test_freezing_names_the_distribution_to_install(environment, tmp_path) -> None:
    optimizer = {"base": {"optimizer": "lion"}, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}}
    done = environment("core", "plugins/lion").ed_train(*arguments_of_a_run(tmp_path, optimizer), cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install ed-train-freezing" in done.stderr


# Types


def test_type_checkers_see_the_types(environment, tmp_path) -> None:
    (tmp_path / "mypy.ini").write_text("[mypy-torch.*,pydantic.*,pluggy.*]\nfollow_imports = skip\n")
    (tmp_path / "user.py").write_text(
        "import ed_train, ed_train_lion\n"
        "reveal_type(ed_train.list_optimizers())\n"
        "reveal_type(ed_train_lion.LionConfig().lr)\n"
        "ed_train.create_optimizer(1, [])\n"
    )
    python = environment("core", "plugins/lion").folder / "bin" / "python"
    command = ["-m", "mypy", "--config-file=mypy.ini", f"--python-executable={python}", "user.py"]
    done = environment("core", "plugins/lion").python(*command, cwd=tmp_path)
    assert 'user.py:2: note: Revealed type is "list[str]"' in done.stdout
    assert 'user.py:3: note: Revealed type is "float"' in done.stdout
    assert 'user.py:4: error: Argument 1 to "create_optimizer" has incompatible type "int"' in done.stdout
    assert "missing library stubs" not in done.stdout


# A plugin from outside


def test_the_plugin_from_outside_is_under_40_lines() -> None:
    sources = list((ROOT / "examples" / "plugin-sgd" / "src").rglob("*.py"))
    assert 0 < sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources) < 40


def test_the_plugin_from_outside_is_listed(environment) -> None:
    done = environment("core", "plugins/lion", "examples/plugin-sgd").ed_train("--list-optimizers", "--json")
    assert listed(done) == {"lion": "ed-train-lion", "sgd": "ed-train-sgd"}


def test_the_plugin_from_outside_is_configured(environment, tmp_path) -> None:
    arguments = arguments_of_a_run(tmp_path, {"base": {"optimizer": "sgd", "momentum": 1.5, "nestorov": True}})
    done = environment("core", "plugins/lion", "examples/plugin-sgd").ed_train(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "base.momentum: got 1.5 (number); expected a number >= 0 and < 1" in done.stderr
    assert "base.nestorov: unknown key; did you mean 'nesterov'?" in done.stderr


def test_the_plugin_from_outside_trains(environment, micro_model, photos, tmp_path) -> None:
    optimizer = {
        "base": {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.8, "nesterov": True},
        "text_encoder_overrides": {"optimizer": "lion", "lr": 1e-6},
    }
    (tmp_path / "optimizer.json").write_text(json.dumps(optimizer))
    settings = {
        "resume_ckpt": micro_model, "data_root": photos, "resolution": 64, "max_epochs": 1, "sample_steps": 0,
        "optimizer_config": "optimizer.json", "disable_amp": "true", "run_name": "outside",
    }  # fmt: skip
    installed = environment("core", "plugins/lion", "examples/plugin-sgd")
    done = installed.ed_train(*(f"--{key}={value}" for key, value in settings.items()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "momentum 0.8" in done.stdout
    assert "nesterov true" in done.stdout
    assert len(list((tmp_path / "logs").rglob("unet/*.safetensors"))) == 1
