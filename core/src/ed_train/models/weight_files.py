"""The files with the weights of one component of a diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
    "pytorch_model.fp16.bin",
)
"""Names of a component's weights in a diffusers folder, best first."""


def weight_file(part: Path) -> Path | None:
    """The best file (or index of a set of files) with the weights of one component's folder."""
    return next((part / name for name in WEIGHTS if (part / name).is_file()), None)


def weight_files(part: Path) -> list[Path]:
    """All files of those weights: that one, or the shards that it is the index of; none where there are no weights.

    Raises:
        ValueError: the index is no such thing, or names a file outside its folder.
        OSError: it cannot be read.
    """
    best = weight_file(part)
    if best is None or best.suffix != ".json":
        return [best] if best else []
    try:
        names = sorted(set(json.loads(best.read_text("utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{best.name} is no index of weights; fetch it again") from None
    if outside:
        raise ValueError(f"{best.name} names {outside[0]}; expected files beside it")
    return [part / name for name in names]
