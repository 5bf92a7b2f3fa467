"""Write a model as the one file that other programs read: half or full precision, and a .yaml where they need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError

from ed_train.errors import CheckpointError, NonFiniteWeightsError
from ed_train.models.atomic import atomic_file
from ed_train.models.file_info import file_metadata, marker_tensors, original_config, predicts_v
from ed_train.models.safetensors_file import write_safetensors
from ed_train.models.save import ModelWeights, as_weights
from ed_train.models.single_file import original_layout

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel


def write_single_file(
    path: Path,
    *,
    unet: UNet2DConditionModel | ModelWeights,
    text_encoder: CLIPTextModel | ModelWeights,
    vae: AutoencoderKL | ModelWeights | Path,
    scheduler_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    title: str = "",
    manifest: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> list[Path]:
    """Write the three components into one ``.safetensors`` file, atomically.

    A text encoder with the activation of OpenCLIP's models (gelu) is written in version 2's layout, any other in
    version 1's. A model that predicts v also gets a ``.yaml`` of the same name, first: without it many programs take
    a model of version 1 for one that predicts the noise. The same model gives the same bytes.

    Args:
        path: the file.
        unet: the UNet, unwrapped.
        text_encoder: the text encoder, unwrapped.
        vae: the VAE, or its component folder.
        scheduler_config: as `SdModel.scheduler_config` returns it; None for a model that predicts the noise.
        dtype: torch.float16 for half precision, torch.float32 for full.
        title: the model's name in the metadata; that of the file if empty.
        manifest: of the checkpoint that the model comes from, for the metadata.
        replace: whether the files may exist.

    Returns:
        What was written: the file, and the .yaml if there is one.

    Raises:
        CheckpointError: `path` exists or cannot be written, or a weight is NaN or infinite or becomes so in `dtype`.
    """
    scheduler = scheduler_config or {}
    side_file = path.with_suffix(".yaml") if predicts_v(scheduler) else None
    try:
        parts = as_weights(unet), as_weights(text_encoder), as_weights(vae)
        tensors = {**original_layout(*parts), **marker_tensors(scheduler)}
        metadata = file_metadata(title or path.stem, parts[1].config, scheduler, manifest or {})
        content = original_config(parts[0].config, parts[1].config, parts[2].config, scheduler) if side_file else {}
        with _side_file(side_file, content, replace=replace), atomic_file(path, replace=replace) as temp:
            write_safetensors(temp, tensors, dtype, metadata)
    except NonFiniteWeightsError as error:
        advice = "; full precision holds larger numbers" if dtype == torch.float16 else ""
        raise CheckpointError(f"{path} was not saved: {error}{advice}") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} was not saved: the VAE cannot be read: {' '.join(str(error).split())}"
        ) from error
    return [path, side_file] if side_file else [path]


@contextmanager
def _side_file(path: Path | None, content: Mapping[str, Any], *, replace: bool) -> Iterator[None]:
    """The .yaml is there before what the block writes, and gone again if that fails."""
    if path is None:
        yield
        return
    with atomic_file(path, replace=replace) as temp:
        temp.write_text(yaml.safe_dump(_plain(content), sort_keys=False), encoding="utf-8")
    try:
        yield
    except BaseException:
        if not replace:
            with suppress(OSError):
                path.unlink()
        raise


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, list | tuple) else value
