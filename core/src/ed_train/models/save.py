"""Write a diffusers folder that `StableDiffusionPipeline.from_pretrained` opens, in every version that people have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from ed_train.errors import NonFiniteWeightsError
from ed_train.models.tensors import listed, non_finite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER_WEIGHTS = "model.safetensors"
_PREFIX = "text_model."


@dataclass(frozen=True)
class ModelWeights:
    """A model's weights at one moment, and its configuration: what can be written while the model trains on.

    Attributes:
        state: the state dict.
        config: the content of its config.json.
    """

    state: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]


def weights_of(module: torch.nn.Module, *, copy: bool = False) -> ModelWeights:
    """A module's weights; a `copy` lies in the CPU's memory and does not change with the module."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if copy:
        state = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
    return ModelWeights(state, component_config(module))


def as_weights(part: torch.nn.Module | ModelWeights | Path) -> ModelWeights:
    """The weights of a module; or of a component folder with one whole safetensors file, which is read.

    Raises:
        OSError, SafetensorError, ValueError: it cannot be read.
    """
    if isinstance(part, ModelWeights):
        return part
    if isinstance(part, Path):
        file = part / TEXT_ENCODER_WEIGHTS
        file = file if file.exists() else part / DIFFUSERS_WEIGHTS
        return ModelWeights(load_file(file), json.loads((part / "config.json").read_bytes()))
    return weights_of(part)


def write_pipeline(
    folder: Path,
    *,
    unet: UNet2DConditionModel | ModelWeights,
    text_encoder: CLIPTextModel | ModelWeights | Path,
    vae: AutoencoderKL | Path,
    tokenizer: CLIPTokenizer | Path,
    scheduler_config: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole pipeline, in float32 and without a safety checker, into an empty folder.

    Nothing here is atomic: write into what `atomic_folder` lends.

    Args:
        folder: an existing folder.
        unet: the UNet, unwrapped (no DistributedDataParallel, no torch.compile around it).
        text_encoder: the text encoder, likewise; or a component folder with float32 weights under published names,
            which are taken over, so that it need not be in memory.
        vae: the VAE, or a component folder whose files are taken over, so that it need not be in memory.
        tokenizer: the tokenizer, or a component folder likewise.
        scheduler_config: with the ``_class_name`` of the scheduler that samplers are to use.
        extra: more fields of model_index.json; readers ignore those that begin with an underscore.

    Raises:
        NonFiniteWeightsError: a component has NaN or infinite weights.
        OSError, SafetensorError: the disk is full or failing.
    """
    unet_weights = as_weights(unet)
    write_weights(folder / "unet" / DIFFUSERS_WEIGHTS, unet_weights.state, "unet")
    _write_json(folder / "unet" / "config.json", unet_weights.config)
    _write_text_encoder(folder / "text_encoder", text_encoder)
    if isinstance(vae, Path):
        _copy(vae, folder / "vae", ("config.json", DIFFUSERS_WEIGHTS))
    else:
        write_weights(folder / "vae" / DIFFUSERS_WEIGHTS, vae.state_dict(), "vae")
        _write_json(folder / "vae" / "config.json", component_config(vae))
    if isinstance(tokenizer, Path):
        _copy(tokenizer, folder / "tokenizer", [p.name for p in tokenizer.iterdir() if p.suffix in (".json", ".txt")])
    else:
        _write_tokenizer(folder / "tokenizer", tokenizer)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config)
    _write_json(folder / "model_index.json", {**_index(scheduler_config), **(extra or {})})


def _write_text_encoder(folder: Path, text_encoder: CLIPTextModel | ModelWeights | Path) -> None:
    if isinstance(text_encoder, Path):
        _copy(text_encoder, folder, (TEXT_ENCODER_WEIGHTS,))
        _write_json(folder / "config.json", _readable(json.loads((text_encoder / "config.json").read_text("utf-8"))))
        return
    weights = as_weights(text_encoder)
    write_weights(folder / TEXT_ENCODER_WEIGHTS, with_prefix(weights.state), "text_encoder")
    _write_json(folder / "config.json", weights.config)


def write_weights(path: Path, state: Mapping[str, torch.Tensor], component: str) -> None:
    """Write tensors as a float32 safetensors file.

    Raises:
        NonFiniteWeightsError: a tensor has NaN or infinite elements; names component and tensors.
    """
    if bad := non_finite(state):
        raise NonFiniteWeightsError(f"{component} has NaN or infinite weights and is not saved: {listed(bad)}")
    path.parent.mkdir(exist_ok=True)
    tensors = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in state.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def with_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text encoder's tensors with the ``text_model.`` prefix.

    Every published model and every reader on transformers before 5.6 has it; the class of later versions does not,
    and reads both.
    """
    return {name if name.startswith(_PREFIX) else _PREFIX + name: tensor for name, tensor in state.items()}


def component_config(module: Any) -> dict[str, Any]:
    """What goes into the config.json of a diffusers model or of the text encoder."""
    if not hasattr(module, "to_json_string"):
        return _readable(json.loads(module.config.to_json_string()))
    config: dict[str, Any] = json.loads(module.to_json_string())
    return _without_place(config)


def _readable(config: dict[str, Any]) -> dict[str, Any]:
    """A text encoder's configuration as transformers 4 reads it, too: torch_dtype is its name of dtype."""
    config.pop("dtype", None)
    return _without_place(config | {"architectures": ["CLIPTextModel"], "torch_dtype": "float32"})


def _without_place(config: dict[str, Any]) -> dict[str, Any]:
    config.pop("_name_or_path", None)  # where the model lay on this machine is nobody else's business
    return config


def _index(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler_config["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_tokenizer(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Write both forms: transformers 5 writes tokenizer.json alone, which CLIPTokenizer of version 4 does not read."""
    tokenizer.save_pretrained(folder)
    if (folder / "vocab.json").exists():
        return
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    _write_json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _copy(source: Path, target: Path, names: Any) -> None:
    target.mkdir()
    for name in names:
        shutil.copyfile(source / name, target / name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
