"""A run that was interrupted goes on as if it had not been: every loss, every weight, every state, bit for bit."""

from __future__ import annotations

import json
import signal

import pytest
from ed_train.registry import load_registry
from ed_train.train import train as loop
from train.resuming import assert_equal_runs

SETTINGS = {
    "prodigy": {"d0": 1e-3},
    "dadapt_adam": {"d0": 1e-3},
    "dadapt_sgd": {"d0": 1e-3},
    "lion": {"lr": 1e-4},
    "lion8bit": {"lr": 1e-4},
}
"""What makes an optimizer move in a few steps."""
USABLE = [o.spec.name for o in load_registry() if "cuda" not in o.spec.devices]
RUN = {
    "max_epochs": 3,
    "batch_size": 2,
    "cond_dropout": 0.3,
    "flip_p": 0.5,
    "clip_grad_norm": 1.0,
    "save_optimizer": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", USABLE)
def test_every_optimizer_goes_on_bit_for_bit(optimizer, train_and_stop, write_optimizer) -> None:
    base = {"optimizer": optimizer, "lr_scheduler": "cosine", "lr_warmup_steps": 2, **SETTINGS.get(optimizer, {})}
    write_optimizer({"base": base, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}})
    assert_equal_runs(train_and_stop("whole", **RUN), train_and_stop("parts", at=(3, 7), **RUN))


CASES = {
    "bf16": {"disable_amp": "false", "mixed_precision": "bf16"},
    "in mid-accumulation": {"grad_accum": 3},
    "at an epoch's end": {},
    "cut short by max_steps": {"max_steps": 7},
    "with everything random": {
        "embedding_perturbation": 0.1, "pyramid_noise_discount": 0.3, "zero_frequency_noise_ratio": 0.1,
        "shuffle_tags": True, "min_snr_gamma": 5,
    },
    "with samples in between": {"sample_steps": 2},
    "the UNet alone": {"disable_textenc_training": True},
    "with a schedule-free optimizer": {"ckpt_every_n_minutes": 0.001},
    "the text encoder alone, bf16": {"disable_unet_training": True, "disable_amp": "false", "mixed_precision": "bf16"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run_goes_on_bit_for_bit(case, train_and_stop, write_optimizer, tmp_path) -> None:
    optimizer = "schedulefree:AdamWScheduleFree" if case == "with a schedule-free optimizer" else "adamw"
    write_optimizer({"base": {"optimizer": optimizer, "lr": 1e-3}, "text_encoder_overrides": {"optimizer": "prodigy"}})
    prompts = {"samples": [{"prompt": "a", "size": [64, 64]}], "num_inference_steps": 2}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    settings = {**RUN, "sample_prompts": tmp_path / "prompts.json", **CASES[case]}
    at = {"in mid-accumulation": (1, 3), "at an epoch's end": (4, 8)}.get(case, (2, 5))
    parts = train_and_stop("parts", at=at, **settings)
    assert_equal_runs(train_and_stop("whole", **settings), parts)
    names = sorted(p.name for p in parts.parent.iterdir() if not p.name.startswith("last-"))
    assert names == sorted(names, key=lambda name: name.rpartition("-gs")[2]), "in the order of their steps"


def test_a_signal_at_the_end_of_a_resumed_runs_start_is_not_followed_by_a_step(
    run_cli, write_optimizer, monkeypatch, capsys
) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}})
    assert run_cli(max_steps=1) == 0
    original = loop.start

    def start(run, signals):
        started = original(run, signals)
        signals.number = signal.SIGTERM
        return started

    monkeypatch.setattr(loop, "start", start)
    assert run_cli(max_steps=2, resume="latest") == 143
    assert "no step was taken" in capsys.readouterr().out
