"""One test for each failure that trainers in the field have, named for it.

Those of the training loop (summed accumulation, clipping that never reaches the text encoder, gradient norms of 0.0,
micro-steps) are in tests/train.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ed_train import create_optimizer, list_optimizers
from ed_train.api import installed_plugins
from ed_train.cli import main
from ed_train.config.describe import default_of
from ed_train.config.load import load_config
from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.config.validate import validated
from ed_train.errors import ConfigError, PluginError
from ed_train.specs import option_names
from ed_train.train.components import build_component, freeze
from torch import nn

Resolve = Callable[..., RunConfig]


@pytest.fixture
def resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """``resolve(optimizer, **flags)`` with an object that is written as optimizer.json."""
    monkeypatch.chdir(tmp_path)

    def resolve(optimizer: dict[str, Any] | None = None, **flags: str) -> RunConfig:
        if optimizer is not None:
            Path("optimizer.json").write_text(json.dumps(optimizer))
            flags["optimizer_config"] = "optimizer.json"
        return load_config({"resume_ckpt": "owner/model", "data_root": ".", **flags}, installed_plugins())

    return resolve


# Names


@pytest.mark.parametrize("name", ["adamw9bit", "adam", "prodigyy", "dadapt-adam", "lion_8bit", ""])
def test_an_unknown_name_never_trains_with_another_optimizer(name, resolve) -> None:
    with pytest.raises(ConfigError, match="no installed optimizer is called"):
        resolve({"base": {"optimizer": name}})
    with pytest.raises(ConfigError, match="no installed optimizer is called"):
        create_optimizer(name, nn.Linear(1, 1).parameters())


def test_a_typo_does_not_train_with_adamw8bit(resolve, monkeypatch, capsys) -> None:
    Path("optimizer.json").write_text('{"base": {"optimizer": "adamW8bits"}}')
    monkeypatch.setattr("ed_train.train.train.train", lambda run: pytest.fail("it trains"))
    flags = ["--resume_ckpt", "owner/model", "--data_root", ".", "--optimizer_config", "optimizer.json"]
    assert main(flags) == 2
    assert "did you mean 'adamw8bit'?" in capsys.readouterr().err


def test_every_listed_name_is_reachable_from_optimizer_json(resolve) -> None:
    for name in list_optimizers():  # the original lists dadapt_adan and cannot be told to use it
        assert resolve({"base": {"optimizer": name}}).components[UNET].optimizer.spec.name == name


def test_names_are_never_matched_by_substring() -> None:
    names = list_optimizers()
    classes = {}
    for name in names:
        if not installed_plugins().find(name).spec.devices:
            classes[name] = type(create_optimizer(name, nn.Linear(2, 2).parameters()))
    assert len(set(classes.values())) == len(classes)
    for name in names:
        for longer in (f"my_{name}", f"{name}_2", f"x{name}"):
            if longer not in names:
                with pytest.raises(ConfigError):
                    installed_plugins().find(longer)


def test_optimizer_config_null_is_the_documented_default(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = {"resume_ckpt": "owner/model", "data_root": ".", "optimizer_config": None}
    Path("train.json").write_text(json.dumps(train))
    run = load_config({}, installed_plugins(), Path("train.json"))
    assert {c.optimizer.spec.name for c in run.components.values()} == {"adamw8bit"}


# Zero, null and inheritance


@pytest.mark.parametrize("key", ["lr", "weight_decay", "lr_warmup_steps", "lr_decay_steps"])
def test_an_explicit_zero_for_the_text_encoder_is_not_swallowed(key, resolve) -> None:
    base = {"lr": 1e-5, "weight_decay": 0.5, "lr_warmup_steps": 7, "lr_decay_steps": 70}
    config = resolve({"base": base, "text_encoder_overrides": {key: 0}}).components[TEXT_ENCODER]
    assert getattr(config.options if key in option_names(type(config.options)) else config, key) == 0


def test_zero_reaches_the_built_optimizer(resolve) -> None:
    run = resolve({"base": {"optimizer": "adamw", "weight_decay": 0.5}, "text_encoder_overrides": {"weight_decay": 0}})
    component = build_component(run.components[TEXT_ENCODER], nn.Linear(2, 2), total_steps=10)
    assert component.optimizer.param_groups[0]["weight_decay"] == 0


def test_more_than_eight_keys_are_inherited(resolve) -> None:
    base = {"optimizer": "prodigy", "d0": 1e-5, "d_coef": 2.0, "decouple": False, "safeguard_warmup": False}
    inherited = vars(resolve({"base": {**base, "growth_rate": 1.5}}).components[TEXT_ENCODER].options)
    assert inherited.items() >= {k: v for k, v in {**base, "growth_rate": 1.5}.items() if k != "optimizer"}.items()


def test_text_encoder_lr_scale_scales(resolve) -> None:
    run = resolve({"base": {"lr": 4e-6}, "text_encoder_lr_scale": 0.25})
    assert run.components[TEXT_ENCODER].options.lr == 1e-6


def test_null_does_not_switch_legacy_freezing_off(resolve) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    run = resolve({"text_encoder_freezing": {"freeze_front_n_layers": -2, "unfreeze_last_n_layers": None}})
    config = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2, vocab_size=9
    )
    frozen = freeze(TEXT_ENCODER, CLIPTextModel(config), run.freezing)
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in frozen if "layers." in name}
    assert layers == {0, 1}


# Options


def other_value(config_type: type[Any], option: str) -> Any:
    """A valid value that is not the default."""
    candidates: tuple[Any, ...] = (True, False, 0.123, 1.5, 2, 16384, (0.8, 0.7), (0.8, 0.7, 0.6), "reference")
    default = default_of(config_type, option)
    return next(c for c in candidates if c != default and not validated(config_type, {option: c})[1])


SHARED = ("param_groups", "state", "defaults")


def state_of(optimizer: torch.optim.Optimizer) -> str:
    """Everything that an optimizer knows but its parameters."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    own = {
        k: v for k, v in vars(optimizer).items() if k not in ("param_groups", "state", "defaults") and "hook" not in k
    }
    return repr((groups, {k: vars(v) if hasattr(v, "__dict__") else v for k, v in own.items() if not callable(v)}))


OPTIONS = [(o.spec.name, option) for o in installed_plugins() for option in option_names(o.spec.config_type)]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_reaches_the_optimizer(name, option) -> None:
    config_type = installed_plugins().find(name).spec.config_type
    module = nn.Linear(2, 2)
    default = state_of(create_optimizer(name, module.parameters()))
    assert default == state_of(create_optimizer(name, module.parameters()))
    value = other_value(config_type, option)
    assert state_of(create_optimizer(name, module.parameters(), **{option: value})) != default


def test_prodigy_gets_betas_and_epsilon() -> None:
    group = create_optimizer("prodigy", nn.Linear(2, 2).parameters(), betas=(0.8, 0.7), epsilon=1e-5).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.7), 1e-5)


def test_values_are_not_rewritten_without_a_word(resolve) -> None:
    options = {
        "lr": 0.37, "betas": [0.81, 0.77], "epsilon": 3e-7, "weight_decay": 0.013, "d0": 3e-5, "d_coef": 1.7,
        "growth_rate": 1.03, "slice_p": 3, "decouple": False, "use_bias_correction": False, "safeguard_warmup": False,
        "beta3": 0.6,
    }  # fmt: skip
    run = resolve({"base": {"optimizer": "prodigy", **options}})
    group = build_component(run.components[UNET], nn.Linear(2, 2), total_steps=10).optimizer.param_groups[0]
    library_name = {"epsilon": "eps"}
    assert {k: group[library_name.get(k, k)] for k in options} == {**options, "betas": (0.81, 0.77)}
    assert run.notes == ()


def test_a_setting_that_has_no_effect_is_not_silent(resolve) -> None:
    (line,) = resolve({"base": {"optimizer": "lion", "lr": 1e-7, "epsilon": 1e-8}}).notes
    assert "base.epsilon has no effect" in line


# Libraries and plugins


def test_an_argument_that_a_library_drops_is_a_named_error_and_not_a_traceback(monkeypatch, resolve) -> None:
    import lion_pytorch

    class NewerLion(torch.optim.SGD):
        def __init__(self, params: Any, *, lr: float, betas: Any, weight_decay: float) -> None:
            super().__init__(params, lr=lr)

    monkeypatch.setattr(lion_pytorch, "Lion", NewerLion)
    with pytest.raises(PluginError, match=r"^ed-train-lion \S+: lion could not be built: .*decoupled_weight_decay"):
        create_optimizer("lion", nn.Linear(2, 2).parameters(), implementation="reference")


def test_positional_arguments_are_not_used_where_a_library_moves_them(monkeypatch) -> None:
    import bitsandbytes

    class KeywordsOnly(torch.optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, lr=options["lr"])
            self.options = options

    monkeypatch.setattr(bitsandbytes.optim, "AdamW8bit", KeywordsOnly)
    optimizer = create_optimizer("adamw8bit", nn.Linear(2, 2).parameters(), weight_decay=0.3)
    assert optimizer.options["weight_decay"] == 0.3  # type: ignore[attr-defined]


def test_installed_but_broken_is_not_called_not_installed(tmp_path, monkeypatch, capsys) -> None:
    metadata = tmp_path / "ed_train_lion-9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: ed-train-lion\nVersion: 9.9\n")
    (metadata / "entry_points.txt").write_text("[ed_train]\nlion = needs_another_package\n")
    (tmp_path / "needs_another_package.py").write_text("import another_package")
    (tmp_path / "optimizer.json").write_text('{"base": {"optimizer": "lion"}}')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["--resume_ckpt", "a/b", "--data_root", ".", "--optimizer_config", "optimizer.json"]) == 2
    message = capsys.readouterr().err
    assert "ed-train-lion 9.9, which is installed but broken: ModuleNotFoundError" in message
    assert "No module named 'another_package'" in message
    assert "not installed" not in message


# Parameters


def test_a_spent_generator_is_never_passed_to_clipping(resolve) -> None:
    run = resolve({"base": {"optimizer": "adamw"}})
    module = nn.Linear(2, 2)
    component = build_component(run.components[UNET], module, total_steps=10)
    for _ in range(2):
        module(torch.ones(1, 2)).sum().backward()
        assert nn.utils.clip_grad_norm_(component.parameters, 0.1) > 0
        assert nn.utils.get_total_norm([p.grad for p in module.parameters()]) <= 0.11


def test_freezing_stops_the_computation_of_gradients(resolve) -> None:
    run = resolve({"base": {"optimizer": "adamw"}, "unet_freezing": ["freeze 0.*"]})
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(UNET, module, run.freezing)
    component = build_component(run.components[UNET], module, total_steps=10)
    before = module[0].weight.clone()
    module(torch.ones(1, 2)).sum().backward()
    component.optimizer.step()
    assert [p.grad for p in module[0].parameters()] == [None, None]
    assert set(component.optimizer.state) == set(module[1].parameters())
    assert torch.equal(module[0].weight, before)


def test_capabilities_stand_with_the_optimizer_and_not_in_a_list_elsewhere(resolve) -> None:
    registry = installed_plugins()
    free = {name for name in list_optimizers() if registry.find(name).spec.learning_rate_free}
    assert free == {name for name in list_optimizers() if name.startswith("dadapt_") or name == "prodigy"}
    for name in list_optimizers():  # and the core acts upon it: an ordinary lr is not handed on
        run = resolve({"base": {"optimizer": name, "lr": 0.3}, "text_encoder_overrides": {"optimizer": "adamw"}})
        assert (run.components[TEXT_ENCODER].options.lr == 0.3) == (name not in free)
