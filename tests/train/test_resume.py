"""A run that was interrupted goes on as if it had not been: every loss, every weight, every state, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ed_train.cli import main
from ed_train.config.resume import STATE_FILE
from ed_train.registry import load_registry
from ed_train.train import train as loop
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


@pytest.fixture
def train_and_stop(flags, monkeypatch, tmp_path) -> Callable[..., Path]:
    """``train_and_stop(name, at=[3, 5], **settings)``: a run that gets SIGTERM in these steps and is resumed each time.

    Returns the checkpoint at the end.
    """

    def run(name: str, at: tuple[int, ...] = (), **settings: Any) -> Path:
        given = {**flags, **settings, "project_name": name}
        arguments = [f"--{key}={value}" for key, value in given.items()]
        after_step = loop.after_step
        pending = list(at)

        def stop(session: Any, *rest: Any) -> bool:
            if pending and session.step + 1 == pending[0]:
                pending.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)
            return after_step(session, *rest)

        monkeypatch.setattr(loop, "after_step", stop)
        for part in range(len(at) + 1):
            status = main([*arguments, *(["--resume=latest"] if part else [])])
            assert status == (143 if part < len(at) else 0)
        (folder,) = (tmp_path / "logs").glob(f"{name}_*")
        (checkpoint,) = (folder / "ckpts").glob("last-*")
        return checkpoint

    return run


def losses(checkpoint: Path) -> dict[int, float]:
    events = EventAccumulator(str(checkpoint.parents[1]), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


def assert_equal_runs(whole: Path, parts: Path) -> None:
    assert losses(whole) == losses(parts) != {}
    names = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    for name in names:
        before, after = load_file(whole / name), load_file(parts / name)
        assert [n for n in before if not torch.equal(before[n], after[n])] == [], name
    for name in ("optimizer_unet.pt", "optimizer_te.pt"):
        if (whole / name).exists():
            assert_equal(*(torch.load(c / name, weights_only=True) for c in (whole, parts)))
    state, other = (torch.load(c / STATE_FILE, weights_only=True) for c in (whole, parts))
    assert state["scheduler_steps"] == other["scheduler_steps"]
    assert_equal(state["random"], other["random"])


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b


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
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run_goes_on_bit_for_bit(case, train_and_stop, write_optimizer, tmp_path) -> None:
    write_optimizer({"base": {"optimizer": "adamw", "lr": 1e-3}, "text_encoder_overrides": {"optimizer": "prodigy"}})
    prompts = {"samples": [{"prompt": "a", "size": [64, 64]}], "num_inference_steps": 2}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    settings = {**RUN, "sample_prompts": tmp_path / "prompts.json", **CASES[case]}
    at = {"in mid-accumulation": (1, 3), "at an epoch's end": (4, 8)}.get(case, (2, 5))
    assert_equal_runs(train_and_stop("whole", **settings), train_and_stop("parts", at=at, **settings))
