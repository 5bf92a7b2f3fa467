"""Fetch a model from the hub: its configuration first, and of its weights only what is needed."""

from __future__ import annotations

from pathlib import Path

from ed_train.errors import ConfigError, Problem
from ed_train.models.failure import load_error, one_line
from ed_train.models.reference import folder_problems

_HUB_CONFIGS = ["*.json", "tokenizer/*"]
_HUB_WEIGHTS = (
    ["*/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"],
    ["*/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"],
    ["*/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"],
)
"""What to fetch from the hub, in order of preference: the same weights lie there in several forms."""


def fetch(hub_id: str, *, weights: bool = True) -> Path:
    """The local copy of a hub repository; its configuration is checked before any weights are fetched.

    Raises:
        ConfigError: it cannot be reached, or is not a model that can be trained.
    """
    folder = _snapshot(hub_id, _HUB_CONFIGS)
    problems = folder_problems(folder, weights=False)
    if weights and not problems:
        for patterns in _HUB_WEIGHTS:
            _snapshot(hub_id, [*_HUB_CONFIGS, *patterns])
            problems = folder_problems(folder)
            if not problems:
                break
    if problems:
        raise ConfigError([Problem("", "resume_ckpt", f"{hub_id}: {problem}") for problem in problems])
    return folder


def _snapshot(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:
        advice = "give a local diffusers folder or file, or go online once"
        raise load_error(f"{hub_id} cannot be fetched from the hub: {one_line(error)}; {advice}") from error
