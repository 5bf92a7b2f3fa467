"""``--describe-optimizer``: everything about an optimizer, and a section that can be pasted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from ed_train import Help, OptimizerSpec
from ed_train.api import installed_plugins
from ed_train.cli import main
from ed_train.commands.describe_optimizer import describe_optimizer
from ed_train.config.describe import annotations_of, expected, help_of
from ed_train.config.load import load_config
from ed_train.config.schema import optimizer_schema
from ed_train.errors import ConfigError, PluginError
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer
from jsonschema import Draft202012Validator

NAMES = installed_plugins().names
SECTION = re.compile(r"^for optimizer\.json:\n(\{.*\})\n\Z", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Options:
    lr: Annotated[float, Help("learning rate")] = 1e-3
    limit: Annotated[float, Help("largest step")] = float("inf")


def registry_of(**traits: Any) -> OptimizerRegistry:
    spec = OptimizerSpec(name="mine", summary="mine", config_type=Options, build=lambda params, config: None, **traits)
    return OptimizerRegistry((RegisteredOptimizer(spec, "my-optimizer", "1.2"),))


@pytest.fixture
def described(capsys: pytest.CaptureFixture[str]) -> Any:
    """What is shown, as text and as an object."""

    def described(name: str, registry: OptimizerRegistry | None = None) -> tuple[str, dict[str, Any]]:
        registry = registry or installed_plugins()
        capsys.readouterr()
        describe_optimizer(name, registry, as_json=False)
        text = capsys.readouterr().out
        describe_optimizer(name, registry, as_json=True)
        return text, json.loads(capsys.readouterr().out)

    return described


# The section for optimizer.json


@pytest.mark.parametrize("name", NAMES)
def test_the_section_is_valid_complete_and_free_of_warnings(name, described, tmp_path) -> None:
    text, shown = described(name)
    match = SECTION.search(text)
    assert match
    section = json.loads(match[1])
    assert section == shown["optimizer_json"]
    spec = installed_plugins().find(name).spec
    assert section["base"].keys() == {"optimizer", *annotations_of(spec.config_type)}
    (tmp_path / "optimizer.json").write_text(match[1])
    paths = {"data_root": str(tmp_path), "optimizer_config": str(tmp_path / "optimizer.json")}
    run = load_config({"resume_ckpt": "owner/model", **paths}, installed_plugins())
    assert run.notes == ()
    for component in run.components.values():
        assert component.optimizer.spec.name == name
        assert component.options == replace(spec.config_type(), **spec.recommended)
    assert list(Draft202012Validator(optimizer_schema(installed_plugins())).iter_errors(section)) == []


def test_recommended_values_go_over_defaults(described) -> None:
    base = described("dadapt_adam")[1]["optimizer_json"]["base"]
    assert (base["optimizer"], base["lr"], base["weight_decay"]) == ("dadapt_adam", 1.0, 0.8)
    assert base["growth_rate"] is None
    assert described("prodigy")[1]["optimizer_json"]["base"]["weight_decay"] == 0.01
    assert described("lion")[1]["optimizer_json"]["base"].items() >= {"lr": 1e-7, "weight_decay": 0.1}.items()


# What is shown


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_its_range_default_and_help(name, described) -> None:
    text, shown = described(name)
    annotations = annotations_of(installed_plugins().find(name).spec.config_type)
    assert [option["name"] for option in shown["options"]] == list(annotations)
    for option in shown["options"]:
        annotation = annotations[option["name"]]
        assert (option["expected"], option["help"]) == (expected(annotation), help_of(annotation))
        default = re.escape(json.dumps(option["default"]))
        assert re.search(rf"^{option['name']} +{default} .*{re.escape(option['expected'])}$", text, re.MULTILINE)
        assert f"\n    {option['help']}\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_where_it_comes_from(described) -> None:
    from importlib.metadata import version

    text, shown = described("prodigy")
    assert text.startswith("prodigy: Prodigy: Adam that finds its learning rate itself\n")
    assert f"from      ed-train-prodigy {version('ed-train-prodigy')}\n" in text
    assert f"library   prodigyopt {version('prodigyopt')}\n" in text
    assert "paper     https://arxiv.org/abs/2306.06101\n" in text
    assert (shown["library"], shown["library_version"]) == ("prodigyopt", version("prodigyopt"))
    assert shown["verified"] is True


def test_traits_in_words(described) -> None:
    assert "learning-rate-free" in described("prodigy")[0]
    assert "learning-rate-free" not in described("lion")[0]
    assert "fails at lr 0" in described("dadapt_sgd")[0]
    assert "cannot be sharded" in described("lion8bit")[0]
    assert "cannot be sharded" not in described("adamw")[0]
    assert "can step parameter by parameter" in described("lion8bit")[0]
    assert "can step parameter by parameter" not in described("prodigy")[0]
    assert "runs on cuda only" in described("paged_lion8bit")[0]
    assert "note      slow on cpu: bitsandbytes' 8-bit optimizers are made for GPUs" in described("lion8bit")[0]
    text, shown = described("mine", registry_of(schedule_free=True))
    assert "note      schedule-free: needs no learning-rate schedule" in text
    assert len(shown["traits"]) == 1


@pytest.mark.parametrize(
    ("name", "state"), [("adamw", 8), ("adamw8bit", 2.03), ("lion", 4), ("prodigy", 16), ("dadapt_adan", 20)]
)
def test_state_beside_adamws(name, state, described) -> None:
    text, shown = described(name)
    assert f"state     {state} bytes per parameter (adamw: 8)\n" in text
    assert shown["state_bytes_per_parameter"] == state
    assert shown["adamw_state_bytes_per_parameter"] == 8


def test_what_a_plugin_does_not_declare(described) -> None:
    text, shown = described("mine", registry_of(library="does-not-exist"))
    assert "usual lr  not declared\nstate     not declared\n" in text
    assert "library   does-not-exist (missing: pip install does-not-exist)\n" in text
    assert shown["usual_lr"] is shown["state_bytes_per_parameter"] is shown["paper"] is shown["library_version"] is None
    assert shown["traits"] == []


def test_a_default_that_json_cannot_hold(described) -> None:
    text, shown = described("mine", registry_of())
    assert shown["options"][1]["default"] == "inf"
    assert shown["optimizer_json"] == {"base": {"optimizer": "mine", "lr": 1e-3}}
    assert '"limit"' not in text


def test_a_class_without_a_plugin_is_called_unverified(described) -> None:
    text, shown = described("torch.optim:NAdam")
    assert "note      unverified: no plugin describes this class" in text
    assert shown["verified"] is False
    assert shown["optimizer_json"]["base"]["optimizer"] == "torch.optim:NAdam"


def test_a_name_that_two_plugins_offer(described) -> None:
    registry = installed_plugins()
    twice = OptimizerRegistry((*registry, replace(registry.find("lion"), distribution="other")))
    assert described("other:lion", twice)[1]["optimizer_json"]["base"]["optimizer"] == "other:lion"
    with pytest.raises(ConfigError, match="choose with ed-train-lion:lion or other:lion"):
        describe_optimizer("lion", twice, as_json=False)


# Wrong input


def test_an_unknown_name_is_wrong_input_with_a_suggestion(capsys) -> None:
    assert main(["--describe-optimizer", "prodigyy"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no installed optimizer is called 'prodigyy'; did you mean 'prodigy'?")


def test_a_plugin_that_fails_is_named() -> None:
    def state_bytes(config: Any, shape: tuple[int, ...]) -> int:
        return config.missing

    with pytest.raises(PluginError, match=r"^my-optimizer 1\.2: mine's state_bytes failed: AttributeError: "):
        describe_optimizer("mine", registry_of(state_bytes=state_bytes), as_json=True)


@pytest.mark.parametrize("arguments", [["lion8bit"], ["prodigy", "--json"], ["paged_adamw8bit"]])
def test_nothing_heavy_is_imported(arguments) -> None:
    code = """
import sys
from ed_train.cli import main
status = main(["--describe-optimizer", *sys.argv[1:]])
heavy = {"torch", "numpy", "pydantic", "bitsandbytes", "prodigyopt"} & sys.modules.keys()
sys.exit(status or ", ".join(heavy) or 0)
"""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parent)
    assert (done.returncode, done.stderr) == (0, "")
