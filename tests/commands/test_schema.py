"""``--schema``: an editor accepts and refuses what the trainer accepts and refuses, as far as one file tells."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config.test_faults import BAD_OPTIMIZER_VALUES, BAD_TRAIN_VALUES
from ed_train.api import installed_plugins
from ed_train.config.describe import annotations_of, default_of, help_of
from ed_train.config.load import load_config
from ed_train.config.optimizer_keys import ScaleAndTweaks, ScheduleConfig
from ed_train.config.schema import optimizer_schema, train_schema, validation_schema
from ed_train.config.train_keys import DEAD, TrainConfig
from ed_train.config.validate import validated
from ed_train.errors import ConfigError
from ed_train.registry import OptimizerRegistry
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
REGISTRY = installed_plugins()
TRAIN = Draft202012Validator(train_schema())
OPTIMIZER = Draft202012Validator(optimizer_schema(REGISTRY))
VALIDATION = Draft202012Validator(validation_schema())
VALIDATORS = {"train": TRAIN, "optimizer": OPTIMIZER, "validation": VALIDATION}
FILES = [p for p in sorted((ROOT / "examples").rglob("*.json")) if re.match(r"(train|optimizer|validation)", p.name)]
SNIPPETS = {
    f"{page.parent.name}/{page.name} {number}": text
    for page in [*sorted((ROOT / "plugins").glob("*/README.md")), ROOT / "docs/configuration.md"]
    for number, text in enumerate(re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
}
# Without 2.0, which JSON Schema counts among the integers and the trainer does not.
VALUES: list[Any] = [
    True, False, 0, 1, -1, 2, 64, 65, 1000, 2**32, 0.5, 1.5, -0.5, 1e-6, "", "x", "cosine", "auto", "1e-6",
    [], [0.5], [0.5, 0.9], [0.5, 1], [0.5, 0.9, 0.9], ["freeze *"], [1], {}, {"a": 1},
]  # fmt: skip


def errors(validator: Draft202012Validator, value: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def show_schema(kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ed_train", "--schema", kind]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


# The command


@pytest.mark.parametrize("kind", VALIDATORS)
def test_the_command_prints_a_valid_schema(kind) -> None:
    done = show_schema(kind)
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    Draft202012Validator.check_schema(printed)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert printed == json.loads(json.dumps(VALIDATORS[kind].schema))


def test_another_kind_is_wrong_input() -> None:
    done = show_schema("samples")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'error: --schema: got "samples"; expected optimizer, train or validation\n'


@pytest.mark.parametrize("kind", ["train", "optimizer"])
def test_the_command_imports_no_torch(kind) -> None:
    code = f"import sys; from ed_train.cli import main; main(['--schema', {kind!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=120).returncode == 0


# What is accepted


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_valid(path) -> None:
    validator = next(VALIDATORS[kind] for kind in VALIDATORS if path.name.startswith(kind))
    assert errors(validator, json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", SNIPPETS)
def test_every_optimizer_json_in_the_documents_is_valid(name) -> None:
    value = json.loads(SNIPPETS[name])
    if "samples" not in value:  # which is a file of prompts
        assert errors(OPTIMIZER, value) == []


def test_schema_and_doc_are_allowed_in_every_object_and_load(tmp_path) -> None:
    free = {"$schema": "optimizer.schema.json", "doc": {"anything": ["at", "all"]}}
    train = {**free, "resume_ckpt": "owner/model", "optimizer_config": "optimizer.json", "data_root": "."}
    optimizer = {**free, **dict.fromkeys(["base", "text_encoder_overrides", "text_encoder_freezing"], free)}
    assert errors(TRAIN, train) == []
    assert errors(OPTIMIZER, optimizer) == []
    (tmp_path / "train.json").write_text(json.dumps(train))
    (tmp_path / "optimizer.json").write_text(json.dumps(optimizer))
    assert load_config({}, REGISTRY, tmp_path / "train.json").notes == ()


ACCEPTED = {
    "nothing": {},
    "null for every section": dict.fromkeys(OPTIMIZER.schema["properties"]),
    "null for every option": {"base": dict.fromkeys(["optimizer", "lr", "betas", "epsilon", "lr_scheduler", "d0"])},
    "distribution and name": {"base": {"optimizer": "ed-train-lion:lion", "lr": 1e-7}},
    "a class with options of its own": {"base": {"optimizer": "torch.optim:NAdam", "momentum_decay": 0.004}},
    "a class that the text encoder inherits": {
        "base": {"optimizer": "torch.optim:NAdam"},
        "text_encoder_overrides": {"momentum_decay": 0.004},
    },
    "a class of the text encoder alone": {"text_encoder_overrides": {"optimizer": "torch.optim:NAdam", "eps": 1e-8}},
    "an option of another optimizer": {"base": {"optimizer": "lion", "epsilon": "is not looked at"}},
    "an option of the text encoder's own optimizer": {
        "base": {"optimizer": "lion"},
        "text_encoder_overrides": {"optimizer": "dadapt_adan", "betas": [0.9, 0.9, 0.9]},
    },
    "the scale in all places and spellings": {
        "text_encoder_lr_scale": 0.5,
        "text_encder_lr_scale": 0.5,
        "text_encoder_overrides": {"text_encoder_lr_scale": 0.5, "text_encder_lr_scale": 0.5},
    },
    "rules without their object": {"unet_freezing": ["freeze *"]},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_by_schema_and_trainer(name, tmp_path) -> None:
    assert errors(OPTIMIZER, ACCEPTED[name]) == []
    (tmp_path / "optimizer.json").write_text(json.dumps(ACCEPTED[name]))
    paths = {"data_root": str(tmp_path), "optimizer_config": str(tmp_path / "optimizer.json")}
    assert load_config({"resume_ckpt": "owner/model", **paths}, REGISTRY).components


# What is refused

BEYOND_ONE_KEY = {  # and why no schema of one file refuses them
    ("timestep_end", 0): "timestep_start belongs to it, and may come from a flag",
    ("resume_ckpt", "findlast"): "a text like any other path, until it is implemented",
    ("lr_decay_steps", 5): "lr_warmup_steps belongs to it",
}

BEYOND_PATTERNS = {  # what of a text makes it wrong
    **dict.fromkeys(("project_name", "run_name"), "Python's idea of a letter, which JSON Schema does not have"),
    **dict.fromkeys(("data_root", "logdir", "cache_dir", "save_ckpt_dir"), "what the file system says of a path"),
}


@pytest.mark.parametrize(("key", "value", "message"), BAD_TRAIN_VALUES)
def test_what_the_trainer_refuses_in_train_json_is_refused(key, value, message) -> None:
    is_text = key in BEYOND_PATTERNS and isinstance(value, str)
    is_expressible = (key, value) not in [*BEYOND_ONE_KEY] and not is_text
    assert bool(errors(TRAIN, {key: value})) == is_expressible


@pytest.mark.parametrize(("base", "key", "message"), BAD_OPTIMIZER_VALUES)
def test_what_the_trainer_refuses_in_optimizer_json_is_refused(base, key, message) -> None:
    is_expressible = not any(item in BEYOND_ONE_KEY for item in base.items() if isinstance(item[1], int))
    assert bool(errors(OPTIMIZER, {"base": base})) == is_expressible


REFUSED = {
    "an unknown section": {"text_encoder_override": {}},
    "a section that is a number": {"base": 3},
    "a section that is a list": {"text_encoder_overrides": [1]},
    "a freezing section that is a number": {"text_encoder_freezing": 3},
    "an unknown key of a freezing section": {"text_encoder_freezing": {"layers": 1}},
    "a wrong value in a freezing section": {"text_encoder_freezing": {"unfreeze_last_n_layers": -1}},
    "rules that are one text": {"unet_freezing": "freeze *"},
    "an unknown key in base": {"base": {"weight_dekay": 0.1}},
    "an unknown key in the overrides": {"text_encoder_overrides": {"weight_dekay": 0.1}},
    "an unknown key beside an installed optimizer": {"base": {"optimizer": "lion", "momentum_decay": 0.1}},
    "the scale in base": {"base": {"text_encoder_lr_scale": 0.5}},
    "a scale that is a text": {"text_encoder_lr_scale": "0.5"},
    "a negative scale": {"text_encoder_overrides": {"text_encder_lr_scale": -1}},
    "a scale that is true": {"text_encoder_lr_scale": True},
    "a name that is only similar": {"base": {"optimizer": "lion8"}},
    "a distribution that offers it not": {"base": {"optimizer": "ed-train-bnb:lion"}},
    "two betas for three": {"base": {"optimizer": "dadapt_adan", "betas": [0.9, 0.99]}},
    "an option of the default optimizer": {"base": {"min_8bit_size": -1}},
    "an option of the default optimizer, with null": {"base": {"optimizer": None, "betas": [0.9]}},
    "an inherited option of the default optimizer": {"text_encoder_overrides": {"betas": [0.9]}},
    "an inherited option": {"base": {"optimizer": "prodigy"}, "text_encoder_overrides": {"d_coef": 0}},
    "an inherited option, with null": {
        "base": {"optimizer": "prodigy"},
        "text_encoder_overrides": {"optimizer": None, "d_coef": 0},
    },
    "an option of the text encoder's own optimizer": {
        "base": {"optimizer": "adamw"},
        "text_encoder_overrides": {"optimizer": "prodigy", "slice_p": 0},
    },
    "a schedule beside a class": {"base": {"optimizer": "torch.optim:NAdam", "lr_scheduler": "sine"}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_schema_and_trainer(name, tmp_path) -> None:
    assert errors(OPTIMIZER, REFUSED[name])
    (tmp_path / "optimizer.json").write_text(json.dumps(REFUSED[name]))
    paths = {"data_root": str(tmp_path), "optimizer_config": str(tmp_path / "optimizer.json")}
    with pytest.raises(ConfigError, match=r"^optimizer\.json:1: "):
        load_config({"resume_ckpt": "owner/model", **paths}, REGISTRY)


def test_unknown_keys_of_train_json_are_refused() -> None:
    (line,) = errors(TRAIN, {"max_epoch": 3})
    assert "'max_epoch' was unexpected" in line


@pytest.mark.parametrize("optimizer", REGISTRY.optimizers, ids=lambda o: f"{o.distribution}:{o.spec.name}")
def test_every_option_is_checked_as_the_trainer_checks_it(optimizer) -> None:
    name = f"{optimizer.distribution}:{optimizer.spec.name}"
    for option in annotations_of(optimizer.spec.config_type):
        for value in VALUES:
            is_wrong = bool(validated(optimizer.spec.config_type, {option: value})[1])
            base = {"base": {"optimizer": name, option: value}}
            assert bool(errors(OPTIMIZER, base)) == is_wrong, (option, value)
            assert bool(errors(OPTIMIZER, {"text_encoder_overrides": base["base"]})) == is_wrong, (option, value)


@pytest.mark.parametrize("key", annotations_of(TrainConfig))
def test_every_key_of_train_json_is_checked_as_the_trainer_checks_it(key) -> None:
    for value in VALUES:
        is_wrong = bool(validated(TrainConfig, {key: value})[1]) or (key == "resolution" and value in (65, 1000))
        assert bool(errors(TRAIN, {key: value})) == is_wrong, value
    assert errors(TRAIN, {key: None}) == []


@pytest.mark.parametrize("key", [*annotations_of(ScheduleConfig), *annotations_of(ScaleAndTweaks)])
def test_every_other_key_of_optimizer_json_is_checked_as_the_trainer_checks_it(key) -> None:
    config_type = ScheduleConfig if key in annotations_of(ScheduleConfig) else ScaleAndTweaks
    for value in VALUES:
        content = {"base": {key: value}} if config_type is ScheduleConfig else {key: value}
        assert bool(errors(OPTIMIZER, content)) == bool(validated(config_type, {key: value})[1]), value


# What an editor shows


def test_every_key_has_its_help_and_its_default() -> None:
    for key, annotation in annotations_of(TrainConfig).items():
        shown = TRAIN.schema["properties"][key]
        assert shown["default"] == default_of(TrainConfig, key)
        assert shown["description"] == help_of(annotation) or key in DEAD
        assert shown.get("deprecated", False) == (key in DEAD)
    for optimizer in REGISTRY:
        options = OPTIMIZER.schema["$defs"][f"{optimizer.distribution}.{optimizer.spec.name}"]["properties"]
        for option, annotation in annotations_of(optimizer.spec.config_type).items():
            assert options[option]["default"] == default_of(optimizer.spec.config_type, option)
            assert options[option]["description"] == help_of(annotation)


def test_a_name_that_two_plugins_offer_has_to_be_written_with_its_distribution() -> None:
    lion = REGISTRY.find("lion")
    twice = OptimizerRegistry((*REGISTRY, replace(lion, distribution="other")), versions=REGISTRY.versions)
    validator = Draft202012Validator(optimizer_schema(twice))
    assert errors(validator, {"base": {"optimizer": "lion"}})
    for name in ("ed-train-lion:lion", "other:lion"):
        assert errors(validator, {"base": {"optimizer": name, "lr": 1e-7}}) == []
        assert errors(validator, {"base": {"optimizer": name, "lr": 0}})
        assert errors(validator, {"base": {"optimizer": name, "weight_dekay": 0}})


def test_without_plugins() -> None:
    validator = Draft202012Validator(optimizer_schema(OptimizerRegistry()))
    validator.check_schema(validator.schema)
    assert errors(validator, {"base": {"lr": 1e-6}, "text_encoder_freezing": None}) == []
    assert errors(validator, {"base": {"optimizer": "lion"}})
    assert errors(validator, {"text_encoder_freezing": {}})
