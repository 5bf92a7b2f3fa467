"""What a single file says about itself, in its metadata and in a .yaml beside it: tensors alone do not tell all.

The fields ``modelspec.*`` are those of https://github.com/Stability-AI/ModelSpec. Whether a model predicts the noise or
v cannot be seen from its tensors; programs take the noise for granted and then draw noise. They learn of v from the
metadata, from two empty tensors (ComfyUI's convention), or from a file in the format of CompVis' own configuration
(https://github.com/CompVis/stable-diffusion, configs/stable-diffusion) that has the model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from ed_train import __version__
from ed_train.models.single_file import is_version_2

Config = Mapping[str, Any]


def predicts_v(scheduler: Config) -> bool:
    """Whether a model predicts v (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512) and not the noise."""
    return scheduler.get("prediction_type") == "v_prediction"


def ends_in_noise(scheduler: Config) -> bool:
    """Whether the noise schedule has a terminal signal-to-noise ratio of zero."""
    return bool(scheduler.get("rescale_betas_zero_snr"))


def architecture(text_encoder: Config, scheduler: Config) -> str:
    """The model's architecture, as ModelSpec calls it."""
    if is_version_2(text_encoder):
        return f"stable-diffusion-v2-{'768-v' if predicts_v(scheduler) else '512'}"
    return "stable-diffusion-v1"


def file_metadata(title: str, text_encoder: Config, scheduler: Config, manifest: Config) -> dict[str, str]:
    """The metadata of a single file.

    Args:
        title: the model's name.
        text_encoder: its configuration.
        scheduler: that of the model's noise schedule.
        manifest: of the checkpoint that the model comes from; empty if it comes from none.
    """
    prediction = "v" if predicts_v(scheduler) else "epsilon"
    fields = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture(text_encoder, scheduler),
        "modelspec.implementation": "sgm",
        "modelspec.title": title,
        "modelspec.prediction_type": prediction,
        "modelspec.predict_key": prediction,
        "ed_train.version": __version__,
        "ed_train.zero_terminal_snr": str(ends_in_noise(scheduler)).lower(),
    }
    if manifest:
        side = manifest["run"]["train"].get("resolution", 512)
        fields |= {"modelspec.resolution": f"{side}x{side}", "ed_train.step": str(manifest["step"])}
    return fields


def stated_schedule(file: Path) -> dict[str, Any]:
    """Fields of a scheduler's configuration that a single file states, or the .yaml beside it, which goes first.

    They go over the configuration that such files usually have: version 1's predicts the noise and version 2's v,
    whatever the model was trained for.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    stated: dict[str, Any] = {}
    if file.suffix.lower() == ".safetensors":
        with safe_open(file, framework="pt") as content:
            names, metadata = set(content.keys()), content.metadata() or {}
        prediction = "v" if "v_pred" in names else metadata.get("modelspec.prediction_type")
        if prediction in ("v", "epsilon"):
            stated["prediction_type"] = "v_prediction" if prediction == "v" else "epsilon"
        if "ztsnr" in names:
            stated["rescale_betas_zero_snr"] = True
    return stated | _schedule_of_yaml(file.with_suffix(".yaml"))


def _schedule_of_yaml(file: Path) -> dict[str, Any]:
    """The same of a file in CompVis' format; nothing where there is none, or where it is something else."""
    try:
        params = yaml.safe_load(file.read_text("utf-8-sig"))["model"]["params"]
        betas = {"beta_start": float(params["linear_start"]), "beta_end": float(params["linear_end"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        return {}
    return {**betas, "prediction_type": "v_prediction" if params.get("parameterization") == "v" else "epsilon"}


def marker_tensors(scheduler: Config) -> dict[str, torch.Tensor]:
    """Empty tensors whose names say how the model predicts."""
    names = ["v_pred"] * predicts_v(scheduler) + ["ztsnr"] * ends_in_noise(scheduler)
    return {name: torch.empty(0) for name in names}


def original_config(unet: Config, text_encoder: Config, vae: Config, scheduler: Config) -> dict[str, Any]:
    """The configuration of a model in CompVis' format: what goes into the .yaml beside its single file."""
    second = is_version_2(text_encoder)
    encoder = "FrozenOpenCLIPEmbedder" if second else "FrozenCLIPEmbedder"
    params = {
        "parameterization": "v" if predicts_v(scheduler) else "eps",
        "linear_start": scheduler.get("beta_start", 0.00085),
        "linear_end": scheduler.get("beta_end", 0.012),
        "num_timesteps_cond": 1,
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": unet["in_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": vae.get("scaling_factor", 0.18215),
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet_params(unet),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": vae["latent_channels"],
                "monitor": "val/rec_loss",
                "ddconfig": _vae_params(vae),
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {
            "target": f"ldm.modules.encoders.modules.{encoder}",
            **({"params": {"freeze": True, "layer": "penultimate"}} if second else {}),
        },
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"model": {"base_learning_rate": 1e-4, "target": target, "params": params}}


def _unet_params(unet: Config) -> dict[str, Any]:
    channels, heads = unet["block_out_channels"], unet["attention_head_dim"]  # diffusers' name for the number of heads
    attends = [level for level, block in enumerate(unet["down_block_types"]) if "CrossAttn" in block]
    several = isinstance(heads, list | tuple)
    return {
        "image_size": 32,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": channels[0],
        "attention_resolutions": [2**level for level in reversed(attends)],
        "num_res_blocks": unet["layers_per_block"],
        "channel_mult": [width // channels[0] for width in channels],
        **({"num_head_channels": channels[0] // heads[0]} if several else {"num_heads": heads}),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": bool(unet.get("use_linear_projection")),
        "transformer_depth": 1,
        "context_dim": unet["cross_attention_dim"],
        "use_checkpoint": True,
        "legacy": False,
    }


def _vae_params(vae: Config) -> dict[str, Any]:
    channels = vae["block_out_channels"]
    return {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": 256,
        "in_channels": vae["in_channels"],
        "out_ch": vae["out_channels"],
        "ch": channels[0],
        "ch_mult": [width // channels[0] for width in channels],
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
