"""docs/coming-from.md: what it says of ours is there, and the hints for names of other trainers agree with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ed_train.cli import main
from ed_train.config.describe import annotations_of
from ed_train.config.optimizer_keys import ScheduleConfig
from ed_train.config.other_names import BASE, OTHER_NAMES
from ed_train.config.train_keys import TrainConfig
from ed_train.data.scan import scan_dataset
from ed_train.data.settings import FOLDER_FILES
from ed_train.registry import load_registry
from PIL import Image

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text("utf-8")
ROWS = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in PAGE.splitlines() if line.startswith("| `")]
KEYS = annotations_of(TrainConfig).keys()


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_everything_that_is_said_to_be_here_is() -> None:
    specs = [entry.spec for entry in load_registry()]
    options = {option for spec in specs for option in annotations_of(spec.config_type)}
    known = {*KEYS, *options, *annotations_of(ScheduleConfig), *FOLDER_FILES, *(spec.name for spec in specs)}
    known |= {"base", "text_encoder_overrides", "optimizer"}
    assert len(ROWS) > 90
    assert [name for row in ROWS for name in names(row[1]) if name not in known] == []
    overview = [line.split("|")[-2] for line in PAGE.splitlines() if line.count("|") == 7]
    assert [name for cell in overview for name in names(cell) if name not in known] == []
    (optimizers,) = {row[2] for row in ROWS if row[0] == "`optimizer_type`"}
    assert [name for name in names(optimizers) if name not in known and name != "module:Class"] == []


def test_hints_and_tables_agree() -> None:
    in_tables: dict[str, set[str]] = {}
    for theirs, here, _ in ROWS:
        in_tables.setdefault(names(theirs)[0], set()).add(here.replace("`", ""))
    plain = {name for name in in_tables if name.isidentifier() and name not in KEYS}
    assert {name: in_tables[name] for name in plain - OTHER_NAMES.keys()} == {}
    for name, here in OTHER_NAMES.items():
        assert name in PAGE or name in ("text_encoder_lr", "unet_lr")
        assert all(cell.startswith(here) for cell in in_tables.get(name, ())), name
        assert re.split(r"[ ,]", here)[0] in KEYS or here.split(" of ")[-1].split(":")[0] in (
            "base", "text_encoder_overrides",
        )  # fmt: skip
    assert not KEYS & {*OTHER_NAMES, *BASE}


def test_a_name_of_another_trainer_gets_ours(tmp_path, capsys) -> None:
    (tmp_path / "train.json").write_text('{"train_batch_size": 4,\n "weight_decay": 0.1}')
    assert main(["--config", str(tmp_path / "train.json"), "--resume_ckpt", "a/b", "--data_root", str(tmp_path)]) == 2
    assert main(["--learning-rate", "1e-4", "--unet_lr", "1e-4"]) == 2
    lines = capsys.readouterr().err.splitlines()
    file = "in optimizer.json, which optimizer_config names"
    assert "error: train.json:1: train_batch_size: unknown key; here it is batch_size" in lines
    assert f"error: train.json:2: weight_decay: unknown key; it stands in base {file}" in lines
    assert "error: --learning-rate: unknown flag; here it is lr" in lines
    assert f"error: --unet_lr: unknown flag; here it is lr of base {file}" in lines


def test_captions_of_a_metadata_jsonl_become_files(tmp_path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "one.png", "text": "a cat, ß"}) + "\n", "utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    (item,) = scan_dataset(tmp_path, flip_p=0, cond_dropout=0).items
    assert item.whole_caption == "a cat, ß"


@pytest.mark.parametrize("trainer", ["EveryDream 2", "sd-scripts", "diffusers", "OneTrainer"])
def test_each_trainer_has_its_part(trainer: str) -> None:
    assert re.search(f"^## {trainer}", PAGE, re.MULTILINE)
