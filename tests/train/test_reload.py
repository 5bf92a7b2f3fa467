"""load_settings_every_epoch in real runs whose train.json is rewritten while they train."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ed_train.cli import main
from ed_train.config.resume import STATE_FILE
from ed_train.models.atomic import read_manifest
from ed_train.train import train as loop
from reliability.two_processes import launched
from train.resuming import assert_equal_runs, losses

EDITING = """
import os
if "LOCAL_RANK" in os.environ:
    import json
    from pathlib import Path
    from ed_train.train import train
    after_step = train.after_step
    def edit(session, *rest):
        if session.step + 1 == 1 and session.output:
            path = Path(os.environ["EDITED"])
            path.write_text(json.dumps({**json.loads(path.read_text()), "log_step": 2, "min_snr_gamma": 1}))
        return after_step(session, *rest)
    train.after_step = edit
"""
"""Runs as Python starts, in the processes that train: the main one rewrites the file in its first step."""


@pytest.fixture
def train_and_edit(flags, write_optimizer, monkeypatch, tmp_path) -> Callable[..., Path]:
    """``train_and_edit(name, {3: {...}}, stop=[5])``: in these steps rewrite train.json, or send a SIGTERM and resume.

    Returns the checkpoint at the end.
    """
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}})
    del flags["optimizer_config"]
    config = tmp_path / "train.json"

    def write(settings: Mapping[str, Any] | str) -> None:
        common = {"load_settings_every_epoch": True, "optimizer_config": "optimizer.json", "save_optimizer": True}
        config.write_text(settings if isinstance(settings, str) else json.dumps({**common, **settings}))

    def run(name: str, edits: Mapping[int, Any], stop: tuple[int, ...] = (), **settings: Any) -> Path:
        write(edits.get(0, {}))
        after_step = loop.after_step
        pending = list(stop)

        def edit(session: Any, *rest: Any) -> bool:
            if session.step + 1 in edits:
                write(edits[session.step + 1])
            if pending and session.step + 1 == pending[0]:
                pending.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)
            return after_step(session, *rest)

        monkeypatch.setattr(loop, "after_step", edit)
        given = {key: value for key, value in flags.items() if key not in ("log_step", "sample_steps")}
        given |= {"project_name": name, "max_epochs": 3, "batch_size": 4, **settings}
        arguments = [f"--config={config}", *(f"--{key}={value}" for key, value in given.items())]
        for part in range(len(stop) + 1):
            assert main([*arguments, *(["--resume=latest"] if part else [])]) == (143 if part < len(stop) else 0)
        monkeypatch.setattr(loop, "after_step", after_step)
        (folder,) = (tmp_path / "logs").glob(f"{name}_*")
        return next((folder / "ckpts").glob("last-*"))

    return run


BEFORE = {"log_step": 1, "sample_steps": 0, "save_every_n_epochs": 1}
AFTER = {
    "log_step": 2, "sample_steps": 5, "sample_prompts": "prompts.json", "save_optimizer": False, "lr": 1e-4,
    "min_snr_gamma": 1,
}  # fmt: skip


def test_what_is_changed_between_two_epochs_counts(train_and_edit, tmp_path, capsys) -> None:
    prompts = {"samples": [{"prompt": "a", "size": [64, 64]}], "num_inference_steps": 1}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    before = {**BEFORE, "sample_prompts": "prompts.json"}
    checkpoint = train_and_edit("edited", {0: before, 3: AFTER, 5: "{"}, no_prepend_last="null")
    out = capsys.readouterr().out
    for line in (
        "epoch 3: save_every_n_epochs 1 -> null, from train.json",
        "epoch 3: save_optimizer true -> false, from train.json",
        "epoch 3: sample_steps 0 -> 5, from train.json",
        "epoch 3: log_step 1 -> 2, from train.json",
        "epoch 3: min_snr_gamma null -> 1.0, from train.json",
        "epoch 3: train.json also has other values now that no run takes over: lr; "
        "end the run and go on with --resume latest, to use what may change then",
    ):
        assert out.count(f"{line}\n") == 1
    assert "epoch 2: " not in out
    assert list(losses(checkpoint)) == [1, 2, 3, 4, 6], "every step, then every other"
    folder = checkpoint.parents[1]
    assert (folder / "samples" / "step00005-grid.jpg").exists()
    saved = {path.name: path for path in (folder / "ckpts").iterdir()}
    assert sorted(saved) == ["edited-ep01-gs00002", "edited-ep02-gs00004", "last-edited-ep03-gs00006"]
    assert [name for name in sorted(saved) if (saved[name] / STATE_FILE).exists()] == ["last-edited-ep03-gs00006"]
    recorded = [read_manifest(path)["run"]["train"]["min_snr_gamma"] for _, path in sorted(saved.items())]
    assert recorded == [None, None, 1], "each says what its steps were made with"
    assert json.loads((folder / "run.json").read_text())["train"]["log_step"] == 1
    later = json.loads((folder / "run-from-gs00004.json").read_text())
    assert (later["train"]["log_step"], later["train"]["load_settings_every_epoch"]) == (2, True)
    assert later["precision"] == json.loads((folder / "run.json").read_text())["precision"]


def test_a_fault_between_two_epochs_costs_a_line(train_and_edit, capsys) -> None:
    checkpoint = train_and_edit("faulty", {0: {"log_step": 1}, 1: '{"log_step": 0}', 3: {"log_step": 2}})
    out = capsys.readouterr().out
    warning = "warning: epoch 2: all settings stay as they are: train.json:1: log_step: got 0 (number); expected an"
    assert out.count(warning) == 1
    assert "epoch 3: log_step 1 -> 2, from train.json" in out
    assert list(losses(checkpoint)) == [1, 2, 3, 4, 6]


@pytest.mark.slow
def test_an_edited_run_goes_on_bit_for_bit(train_and_edit, tmp_path) -> None:
    """Interrupted at the end of the epoch before the change, and in the middle of the one after it."""
    (tmp_path / "validation.json").write_text('{"val_split_proportion": 0.25, "every_n_epochs": 1}')
    changed = {"log_step": 1, "min_snr_gamma": 1, "zero_frequency_noise_ratio": 0.1, "loss_type": "huber"}
    edits = {0: {"log_step": 1}, 1: changed, 4: {**changed, "embedding_perturbation": 0.5}}
    settings = {"validation_config": tmp_path / "validation.json", "batch_size": 3, "sample_steps": 0}
    whole = train_and_edit("whole", edits, **settings)
    assert_equal_runs(whole, train_and_edit("parts", edits, stop=(2, 3), **settings))
    assert losses(train_and_edit("plain", {0: {"log_step": 1}}, **settings))[3] != losses(whole)[3]


@pytest.mark.slow
def test_two_processes_take_the_same_over(flags, write_optimizer, tmp_path, monkeypatch) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}})
    site, config = tmp_path / "site", tmp_path / "train.json"
    site.mkdir()
    (site / "sitecustomize.py").write_text(EDITING)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("EDITED", str(config))
    config.write_text(json.dumps({"load_settings_every_epoch": True, "log_step": 1}))
    del flags["log_step"]
    with launched(tmp_path, {**flags, "config": config, "max_epochs": 2, "run_name": "of-2"}) as launch:
        assert launch.end(120) == 0, launch.output
    assert launch.output.count("epoch 2: log_step 1 -> 2, from train.json") == 1
    assert launch.output.count("epoch 2: min_snr_gamma null -> 1.0, from train.json") == 1
    assert "Traceback" not in launch.output
    (checkpoint,) = (tmp_path / "logs" / "of-2" / "ckpts").iterdir()
    assert list(losses(checkpoint)) == [1, 2, 4], "a log point gathers from both: they have the same ones"
