"""What the configuration files of a model's parts must say for it to be one that can be trained here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINABLE = "ed-train trains Stable Diffusion 1 and 2"
_VAE_LEVELS = 4  # each but the first halves the sides; sizes are multiples of 64, 8 of them for the UNet's own halvings


def config_problems(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what does not fit; an empty list if all does.

    Args:
        configs: the content of each part's configuration file, by the part's name.
    """
    return [*_unet_problems(configs["unet"]), *_text_problems(configs), *_rest(configs["vae"], configs["scheduler"])]


def _unet_problems(unet: Mapping[str, Any]) -> list[str]:
    problems = []
    if unet.get("addition_embed_type") or unet.get("class_embed_type") or unet.get("num_class_embeds"):
        problems.append(f"the UNet takes more than a text and a timestep (Stable Diffusion XL?); {TRAINABLE}")
    if (kind := unet.get("_class_name", "UNet2DConditionModel")) != "UNet2DConditionModel":
        problems.append(f"the UNet is a {kind}; expected a UNet2DConditionModel; {TRAINABLE}")
    for way, hint in (("in", " (inpainting?)"), ("out", "")):
        if (channels := unet.get(f"{way}_channels", 4)) != 4:
            problems.append(f"the UNet has {channels!r} {way}put channels, not 4{hint}; {TRAINABLE}")
    return problems


def _text_problems(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    unet, text_encoder = configs["unet"], configs["text_encoder"]
    problems = []
    if text_encoder.get("model_type") not in (None, "clip_text_model", "clip"):
        problems.append(f"text_encoder is a {text_encoder['model_type']}; expected clip_text_model")
    width, wanted = text_encoder.get("hidden_size"), unet.get("cross_attention_dim")
    if isinstance(width, int) and isinstance(wanted, int) and width != wanted:
        problems.append(f"the UNet expects text embeddings of {wanted} and text_encoder makes {width}")
    return problems


def _rest(vae: Mapping[str, Any], scheduler: Mapping[str, Any]) -> list[str]:
    problems = []
    if (channels := vae.get("latent_channels", 4)) != 4:
        problems.append(f"the VAE has {channels!r} latent channels, not 4; {TRAINABLE}")
    levels = vae.get("block_out_channels")
    if isinstance(levels, list) and len(levels) > _VAE_LEVELS:
        problems.append(f"the VAE has {len(levels)} levels, more than {_VAE_LEVELS}; {TRAINABLE}")
    factor = vae.get("scaling_factor", 0.18215)
    if not isinstance(factor, int | float) or not factor > 0:
        problems.append(f"the VAE's scaling_factor is {factor!r}; expected a number > 0, such as 0.18215")
    if (prediction := scheduler.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction"):
        problems.append(f'prediction_type "{prediction}"; expected epsilon or v_prediction')
    return problems
