"""The generated page is up to date, and its examples are valid."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from ed_train.config.describe import annotations_of
from ed_train.config.load import load_config
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import ConfigError
from ed_train.models.prompts import read_sample_prompts
from ed_train.registry import load_registry

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "configuration.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_md_is_up_to_date(generate) -> None:
    assert generate.page(PAGE) == PAGE, "run: python docs/generate.py"


def test_configuration_md_has_every_key() -> None:
    in_tables = set(re.findall(r"`(\w+)`", "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))))
    assert annotations_of(TrainConfig).keys() - in_tables == set()


def test_a_page_without_its_markers_is_refused(generate) -> None:
    with pytest.raises(SystemExit, match="expected <!-- begin train-keys -->"):
        generate.page(PAGE.replace("<!-- begin train-keys -->", ""))


def test_the_optimizer_file_of_the_page_is_valid(tmp_path) -> None:
    (tmp_path / "optimizer.json").write_text(EXAMPLES[0])
    flags = {
        "resume_ckpt": "owner/model",
        "data_root": str(tmp_path),
        "optimizer_config": str(tmp_path / "optimizer.json"),
    }
    assert load_config(flags, load_registry()).components["text_encoder"].options.lr == 5e-7


def test_the_note_of_the_page_is_a_real_one(tmp_path) -> None:
    (tmp_path / "optimizer.json").write_text('{"text_encoder_overrides": {"lr": 5e-7}}')
    (tmp_path / "train.json").write_text('{"lr": 2e-6, "optimizer_config": "optimizer.json"}')
    flags = {"resume_ckpt": "owner/model", "data_root": str(tmp_path)}
    (note,) = load_config(flags, load_registry(), tmp_path / "train.json").notes
    (shown,) = re.findall(r"^    note: (.*)$", PAGE, re.MULTILINE)
    assert re.sub(r":\d+", "", note) == re.sub(r":\d+", "", shown)


def test_the_sample_prompts_of_the_page_are_valid(tmp_path) -> None:
    (tmp_path / "prompts.json").write_text(EXAMPLES[1])
    settings, problems = read_sample_prompts(tmp_path / "prompts.json")
    assert problems == []
    assert settings is not None
    assert len(settings.samples) == len(json.loads(EXAMPLES[1])["samples"]) == 3


def test_the_page_says_which_problems_there_are_as_they_are(tmp_path) -> None:
    (tmp_path / "train.json").write_text('{"lr": "1e-6", "wandb": 1}')
    with pytest.raises(ConfigError) as error:
        load_config({"data_root": str(tmp_path)}, load_registry(), tmp_path / "train.json")
    assert {p.key for p in error.value.problems} == {"lr", "wandb", "resume_ckpt"}
