"""The files of a part's folder that a checkpoint takes over as they are, and whether they are all right now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ed_train.models.header import read_safetensors_header
from ed_train.models.save import DIFFUSERS_WEIGHTS, TEXT_ENCODER_WEIGHTS

FILES = {
    "vae": ("config.json", DIFFUSERS_WEIGHTS),
    "tokenizer": ("vocab.json", "merges.txt"),
    "text_encoder": ("config.json", TEXT_ENCODER_WEIGHTS),
    "scheduler": ("scheduler_config.json",),
}
"""The files without which a part's folder is not taken over."""


def can_be_copied(folder: Path, part: str) -> bool:
    """Whether they are there, whole by their headers, and in a form that every reader knows.

    Somebody may remove or replace a model while a run that began with it goes on.
    """
    try:
        contents = [_content(folder / name) for name in FILES[part]]
    except (OSError, ValueError, RecursionError):
        return False
    return all(contents) and (part != "text_encoder" or _as_we_write_it(contents[-1]))


def _content(file: Path) -> Any:
    """What tells whether a file is whole: of weights the header, which says how long they are."""
    if file.suffix == ".safetensors":
        return read_safetensors_header(file)
    return json.loads(file.read_text("utf-8-sig")) if file.suffix == ".json" else file.read_bytes()


def _as_we_write_it(header: Any) -> bool:
    """Whether a text encoder's file has float32 weights under names with ``text_model.``."""
    return all(name.startswith("text_model.") and entry["dtype"] == "F32" for name, entry in header.items())
