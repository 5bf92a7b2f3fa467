"""Checkpoints of a few kilobytes, written by the product's own writer, for tests that need many of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ed_train.config.resume import STATE_FILE
from ed_train.models.save import ModelWeights
from ed_train.train.checkpoint import CheckpointWriter, Snapshot, checkpoints_of, manifest_header

RUN_ID = "0123456789abcdef"
STATES = {STATE_FILE: {"skipped": 0}, "optimizer_unet.pt": {"state": {0: torch.ones(5000)}, "param_groups": []}}


def manifest(run: Path, step: int, **changes: Any) -> dict[str, Any]:
    """What a run's manifest says beside the files."""
    record = {"optimizer": "adamw", "distribution": "ed-train-adamw", "version": "0", "parameters": [], "shapes": []}
    return {
        **manifest_header("myproj", RUN_ID, run),
        "step": step,
        "epoch": 0,
        "batches_done": step,
        "batch_number": step,
        "data": "of these pictures",
        "optimizers": {"unet": record},
        "run": {"train": {}, "optimizer": {"base": {"optimizer": "adamw"}}},
        **changes,
    }


def snapshot(folder: Path, step: int, **changes: Any) -> Snapshot:
    """A checkpoint in memory; `folder` is that of the checkpoints."""
    parts = folder.parent / "parts"
    for name in ("config.json", "diffusion_pytorch_model.safetensors", "vocab.json"):
        (parts / name).parent.mkdir(exist_ok=True)
        (parts / name).write_text("{}")
    weights = ModelWeights({"weight": torch.full((100,), float(step))}, {"_class_name": "Any"})
    pipeline = {
        "unet": weights,
        "text_encoder": weights,
        "vae": parts,
        "tokenizer": parts,
        "scheduler_config": {"_class_name": "DDPMScheduler"},
    }
    target = folder / f"myproj-ep00-gs{step:05d}"
    return Snapshot(target, pipeline, STATES, manifest(folder.parent, step, **changes))


@contextmanager
def writer(folder: Path, *, keep: int | None = None, keep_states: bool = False) -> Iterator[CheckpointWriter]:
    """The writer of a run that begins or goes on in this folder."""
    opened = CheckpointWriter(folder, keep, keep_states, checkpoints_of(RUN_ID, folder))
    try:
        yield opened
    finally:
        opened.close()


def save(folder: Path, *steps: int, keep: int | None = None, keep_states: bool = False, **changes: Any) -> list[Path]:
    """Save checkpoints of these steps, one after the other."""
    with writer(folder, keep=keep, keep_states=keep_states) as opened:
        return [opened.write(snapshot(folder, step, **changes)) for step in steps]
