"""Whether two runs are the same: every loss, every weight, every state, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ed_train.config.ema import ema_folder
from ed_train.config.resume import EMA_FILE, STATE_FILE
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
OPTIMIZERS = ("optimizer_unet.pt", "optimizer_te.pt")


def losses(checkpoint: Path) -> dict[int, float]:
    """The loss of every step of a checkpoint's run, as logged."""
    events = EventAccumulator(str(checkpoint.parents[1]), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


def assert_equal_runs(whole: Path, parts: Path) -> None:
    """Compare two runs by the checkpoints at their ends."""
    assert losses(whole) == losses(parts) != {}
    for name in WEIGHTS:
        assert_equal_weights(whole / name, parts / name)
    for name in OPTIMIZERS:
        assert (whole / name).exists() == (parts / name).exists()
        if (whole / name).exists():
            assert_equal(*(torch.load(c / name, weights_only=True) for c in (whole, parts)))
    state, other = (torch.load(c / STATE_FILE, weights_only=True) for c in (whole, parts))
    assert_equal(state, other)
    assert (whole / EMA_FILE).exists() == (parts / EMA_FILE).exists()
    if (whole / EMA_FILE).exists():
        assert_equal_weights(whole / EMA_FILE, parts / EMA_FILE)
        for name in WEIGHTS:
            assert_equal_weights(ema_folder(whole) / name, ema_folder(parts) / name)


def assert_equal_weights(one: Path, other: Path) -> None:
    """Compare safetensors files."""
    before, after = load_file(one), load_file(other)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [], one


def assert_equal(a: Any, b: Any) -> None:
    """Compare state dicts, tensors by their elements."""
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
