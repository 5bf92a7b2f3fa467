"""run.json: what a run was made with; as a configuration, it repeats the run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from ed_train import __version__
from ed_train.cli import main
from ed_train.config.load import load_config
from ed_train.errors import ConfigError
from ed_train.registry import load_registry
from safetensors.torch import load_file

OPTIMIZER = {
    "base": {"optimizer": "adamw", "lr": 1e-3, "betas": [0.8, 0.99], "lr_scheduler": "cosine", "lr_warmup_steps": 1},
    "text_encoder_overrides": {"optimizer": "prodigy", "d0": 1e-4, "growth_rate": 1.5},
    "text_encoder_freezing": {"unfreeze_last_n_layers": 2},
}


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "logs").glob("*_*"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = (run / "ckpts").iterdir()
    return load_file(checkpoint / "unet/diffusion_pytorch_model.safetensors") | load_file(
        checkpoint / "text_encoder/model.safetensors"
    )


@pytest.mark.slow
def test_run_json_repeats_the_run(run_cli, write_optimizer, tmp_path, monkeypatch, capsys) -> None:
    prompts = {"samples": [{"prompt": "a cat", "size": [64, 64]}], "num_inference_steps": 2, "cfgs": [1, 3]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    write_optimizer(OPTIMIZER)
    settings = {"seed": -1, "sample_prompts": tmp_path / "prompts.json", "sample_steps": 2, "flip_p": 0.5}
    assert run_cli(**settings, lr=2e-3, grad_accum=2, cond_dropout=0.3, project_name="first") == 0
    (first,) = folders(tmp_path)
    (tmp_path / "prompts.json").unlink()
    (tmp_path / "optimizer.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert main(["--config", str(first / "run.json"), "--project_name", "second"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [note for note in notes if "unusual" not in note] == [], "nothing overrides anything any more"
    _, second = folders(tmp_path)
    before, after = weights(first), weights(second)
    assert all(torch.equal(before[name], after[name]) for name in before)
    pictures = [sorted(p.name for p in (run / "samples").iterdir()) for run in (first, second)]
    assert pictures[0] == pictures[1] != []
    records = [json.loads((run / "run.json").read_text()) for run in (first, second)]
    assert records[0]["train"] | {"project_name": "second"} == records[1]["train"]
    assert records[0]["optimizer"] == records[1]["optimizer"]


def test_what_run_json_holds(run_cli, write_optimizer, tmp_path, micro_model) -> None:
    write_optimizer(OPTIMIZER)
    assert run_cli(lr=2e-3, max_steps=1, save_nothing=True) == 0
    record = json.loads((folders(tmp_path)[0] / "run.json").read_text())
    assert record["train"]["resume_ckpt"] == str(micro_model)
    assert record["train"]["seed"] == record["seed"] == 555
    base, overrides = record["optimizer"]["base"], record["optimizer"]["text_encoder_overrides"]
    assert base["optimizer"] == "ed-train-adamw:adamw"
    assert (base["lr"], base["betas"], base["weight_decay"]) == (2e-3, [0.8, 0.99], 0.01)
    assert base["lr_scheduler"] == "cosine"
    assert (overrides["lr"], overrides["growth_rate"], overrides["slice_p"]) == (2e-3, 1.5, 1)
    assert record["optimizer"]["text_encoder_freezing"]["unfreeze_last_n_layers"] == 2
    assert record["plugins"] == dict.fromkeys(("ed-train-adamw", "ed-train-prodigy", "ed-train-freezing"), "0.1.0")
    assert record["libraries"]["torch"] == torch.__version__
    assert record["libraries"]["prodigyopt"]
    assert (record["ed_train"], record["device"], record["precision"]) == (__version__, "cpu", "no")
    assert record["processes"] == 1


def test_an_infinite_default_is_left_out_and_comes_back(run_cli, write_optimizer, tmp_path) -> None:
    write_optimizer({"base": {"optimizer": "prodigyopt:Prodigy", "d0": 1e-5}})
    assert run_cli(max_steps=1) == 0
    (folder,) = folders(tmp_path)
    record = json.loads((folder / "run.json").read_text(), parse_constant=pytest.fail)
    assert record["optimizer"]["base"]["d0"] == 1e-5
    assert "growth_rate" not in record["optimizer"]["base"]
    options = load_config({}, load_registry(), folder / "run.json").components["unet"].options
    assert (options.d0, options.growth_rate) == (1e-5, float("inf"))


def test_the_git_commit_of_the_current_directory(run_cli, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "--allow-empty", "-m", "x"],
    )
    for command in commands:
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert run_cli(max_steps=1, save_nothing=True) == 0
    assert json.loads((folders(tmp_path)[0] / "run.json").read_text())["git_commit"] == head


def resolved(tmp_path: Path, content: object) -> object:
    (tmp_path / "run.json").write_text(json.dumps(content, indent=1))
    return load_config({}, load_registry(), tmp_path / "run.json")


def test_an_edited_run_json_is_checked_with_its_own_lines(tmp_path, micro_model, photos) -> None:
    train = {"resume_ckpt": str(micro_model), "data_root": str(photos)}
    content = {
        "ed_train_run": 1, "train": train, "optimizer": {"base": {"optimizer": "lion", "lr": 1e-7}},
        "sample_prompts": {"samples": [{"prompt": "a"}], "cfgs": [7]}, "plugins": {"ed-train-lion": "0.0.9"},
    }  # fmt: skip
    run = resolved(tmp_path, content)
    assert run.components["unet"].optimizer.spec.name == "lion"
    assert run.samples.samples[0].prompt == "a"
    assert run.notes == ("the recorded run used ed-train-lion 0.0.9, and 0.1.0 is installed",)
    train["max_epoch"] = 3
    content["optimizer"]["base"]["lr"] = "x"
    content["sample_prompts"]["cfgs"] = [-1]
    with pytest.raises(ConfigError) as error:
        resolved(tmp_path, content)
    lines = (tmp_path / "run.json").read_text().splitlines()
    for key in ("max_epoch", "lr", "cfgs"):
        number = next(n for n, line in enumerate(lines, 1) if f'"{key}"' in line)
        assert any(p.where == f"run.json:{number}" for p in error.value.problems), key


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ed_train_run": 2}, "run.json:2: ed_train_run: got 2; this ed-train reads format 1; upgrade ed-train"),
        ({"ed_train_run": 1, "train": {}}, "run.json: optimizer: missing; a run.json has this section"),
        ({"ed_train_run": 1, "validation": [1]}, "run.json:3: validation: got [1] (list); expected an object or null"),
    ],
)
def test_a_run_json_that_cannot_be_read(content, message, tmp_path) -> None:
    with pytest.raises(ConfigError) as error:
        resolved(tmp_path, content)
    assert str(error.value).splitlines()[0] == message
