"""A Stable Diffusion model without its weights: modules on torch's meta device, which have names and shapes alone.

They are made from configuration files. Of a hub repository only those are fetched, and of a single file only the
names and shapes of its tensors are read, to find out which configuration it goes with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ed_train.errors import ConfigError
from ed_train.models.failure import load_error, one_line
from ed_train.models.header import read_safetensors_header
from ed_train.models.hub import fetch
from ed_train.models.load import SdModel, refuse_foreign_globals
from ed_train.models.quiet import quiet_libraries
from ed_train.models.reference import ModelReference

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel


def configuration_of(reference: ModelReference) -> SdModel:
    """The model as a diffusers folder that may have no weights: for its schedule, tokenizer and scaling factor.

    Raises:
        ConfigError: the hub cannot be reached, or the model is not one that can be trained.
    """
    if reference.kind == "folder":
        return SdModel(reference)
    if reference.kind == "hub":
        folder = fetch(reference.location, weights=False)
    elif reference.model_config is None:
        folder = _usual_configuration(reference.path)
    elif Path(reference.model_config).is_dir():
        folder = Path(reference.model_config)
    else:
        folder = fetch(reference.model_config, weights=False)
    single_file = reference.path if reference.kind == "file" else None
    return SdModel(ModelReference("folder", str(folder)), single_file=single_file)


def empty_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a diffusers folder, on the meta device, named as the loaded one. Raises ConfigError."""
    try:
        with quiet_libraries(), torch.device("meta"):
            from diffusers import UNet2DConditionModel

            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(folder / "unet")))
    except Exception as error:
        raise load_error(f"{folder / 'unet'}: the UNet cannot be built: {one_line(error)}") from error
    return unet.float()


def empty_text_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder of a diffusers folder, on the meta device, named as the loaded one. Raises ConfigError."""
    path = folder / "text_encoder"
    try:
        with quiet_libraries(), torch.device("meta"):
            from transformers import CLIPTextConfig, CLIPTextModel

            text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(str(path), local_files_only=True))
    except Exception as error:
        raise load_error(f"{path}: the text encoder cannot be built: {one_line(error)}") from error
    return text_encoder.float()


def _usual_configuration(file: Path) -> Path:
    """The local copy of the configuration that diffusers takes for such a single file."""
    with quiet_libraries():
        from diffusers.loaders.single_file_utils import fetch_diffusers_config

    hub_id = str(fetch_diffusers_config(_shapes(file))["pretrained_model_name_or_path"])
    try:
        return fetch(hub_id, weights=False)
    except ConfigError as error:
        advice = "set model_config to a diffusers folder of the same kind of model, or its hub id"
        raise load_error(f"{file} goes with the configuration of {hub_id}: {error}; {advice}") from error


def _shapes(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a single file, on the meta device: nothing of them is read but their shapes."""
    if file.suffix.lower() != ".ckpt":
        header = read_safetensors_header(file)
        return {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
    refuse_foreign_globals(file)
    try:
        state: Any = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:
        raise load_error(f"{file} cannot be loaded: {one_line(error)}") from error
    while "state_dict" in state:
        state = state["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
