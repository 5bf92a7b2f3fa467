"""One file for other programs beside each checkpoint: written after it, gone with it, and never what a resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ed_train.config.ema import ema_folder
from ed_train.errors import CheckpointError
from ed_train.models.atomic import read_manifest
from ed_train.models.export import write_single_file

SINGLE_FILE = "single_file"
"""The key of a checkpoint's manifest that says that the run has put one beside it, and its precision."""
PRECISIONS = {"half": torch.float16, "full": torch.float32}


def single_file(checkpoint: Path) -> Path:
    """The file that belongs to a checkpoint, or to its average."""
    return checkpoint.with_name(f"{checkpoint.name}.safetensors")


def write_single_files(
    checkpoint: Path, pipelines: Mapping[Path, Mapping[str, Any]], manifest: Mapping[str, Any]
) -> str:
    """Write the single files of a checkpoint that has been saved.

    Args:
        checkpoint: its folder.
        pipelines: the arguments of `write_pipeline` for it, and for its average, by folder.
        manifest: what its manifest says, with the precision under `SINGLE_FILE`.

    Returns:
        A line for the user.
    """
    written = []
    for folder, pipeline in pipelines.items():
        parts = {key: value for key, value in pipeline.items() if key != "tokenizer"}
        dtype = PRECISIONS[manifest[SINGLE_FILE]]
        try:
            files = write_single_file(single_file(folder), **parts, dtype=dtype, title=folder.name, manifest=manifest)
        except CheckpointError as error:
            return f"warning: {error}; the checkpoint itself is saved, and ed-train --export {folder} makes the file"
        written += [path.name for path in files]
    return f"single files: {', '.join(written)}"


def remove_single_files(checkpoint: Path) -> None:
    """Remove the files that the run has put beside a checkpoint, not those that somebody exported.

    Raises:
        OSError: one cannot be removed.
    """
    with suppress(CheckpointError):
        if read_manifest(checkpoint).get(SINGLE_FILE):
            for folder in (checkpoint, ema_folder(checkpoint)):
                for path in (single_file(folder), single_file(folder).with_suffix(".yaml")):
                    path.unlink(missing_ok=True)
