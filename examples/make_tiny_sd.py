#!/usr/bin/env python
"""Make small Stable Diffusion models with random weights, as diffusers folders.

    python examples/make_tiny_sd.py tiny OUT

Three sizes, all of SD 1's shape (four levels of the UNet, a causal CLIP text encoder, a VAE that shrinks pictures to
1/8), so that the trainer and every test and benchmark can run without a download:

    micro   UNet 0.5 M, text encoder 1.6 M: loads in under a second and takes a training step at 64 px in about 40 ms
    tiny    UNet 8.8 M, text encoder 8.7 M, VAE 1.3 M: a training run of minutes on two cores
    small   UNet 77.6 M, text encoder 22.1 M, VAE 8.2 M: enough weight to time optimizers

Of tiny and small the VAE's share of a training step's floating-point operations is about that of SD 1.5 (0.3), so what
is gained by caching latents is realistic. Attention heads are few and wide, as in real models: torch's CPU attention
is slow for heads narrower than 16, and would otherwise take most of the time.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

VOCABULARY_SIZE = 49408
SCALING_FACTOR = 0.18215


@dataclass(frozen=True)
class ModelSize:
    """Widths of one model; every number of channels is a multiple of its group norm's number of groups."""

    unet_channels: tuple[int, ...]
    unet_norm_groups: int
    unet_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    vae_channels: tuple[int, ...]
    vae_norm_groups: int
    layers_per_block: int = 2


SIZES = {
    "micro": ModelSize((16, 32, 32, 32), 8, 1, 32, 4, 2, (8, 8, 8, 8), 8, layers_per_block=1),
    "tiny": ModelSize((32, 64, 128, 128), 32, 2, 128, 12, 4, (16, 32, 64, 64), 16),
    "small": ModelSize((96, 192, 384, 384), 32, 2, 256, 12, 4, (40, 80, 160, 160), 20),
}


def make_tiny_sd(
    size: str, folder: str | Path, *, sd2: bool = False, v_prediction: bool = False, seed: int = 1234
) -> Path:
    """Write a model with random weights that `StableDiffusionPipeline.from_pretrained` opens.

    Args:
        size: ``micro``, ``tiny`` or ``small``.
        folder: where to write it; made if it does not exist.
        sd2: build it as SD 2 is: linear projections in the UNet's attention, GELU in the text encoder, and a
            tokenizer that pads with ``!``.
        v_prediction: the scheduler says that the UNet predicts v (SD 2.1 at 768 px) and not the noise.
        seed: of the weights; the same seed gives the same files.

    Returns:
        The folder.

    Raises:
        KeyError: `size` is none of the three.
    """
    widths = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = make_text_encoder(widths, sd2=sd2)
        unet = make_unet(widths, sd2=sd2)
        vae = make_vae(widths)
        widen_latents(vae)
    return save_pipeline(folder, vae, text_encoder, unet, sd2=sd2, v_prediction=v_prediction)


def make_text_encoder(size: ModelSize, *, sd2: bool = False) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=size.text_width,
            intermediate_size=4 * size.text_width,
            projection_dim=size.text_width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.text_heads,
            max_position_embeddings=77,
            hidden_act="gelu" if sd2 else "quick_gelu",
            bos_token_id=VOCABULARY_SIZE - 2,
            eos_token_id=VOCABULARY_SIZE - 1,
            pad_token_id=1,
        )
    )


def make_unet(size: ModelSize, *, sd2: bool = False) -> UNet2DConditionModel:
    levels = len(size.unet_channels)
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        layers_per_block=size.layers_per_block,
        block_out_channels=size.unet_channels,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=size.text_width,
        attention_head_dim=size.unet_heads,  # diffusers' name for the number of heads
        norm_num_groups=size.unet_norm_groups,
        use_linear_projection=sd2,
    )


def make_vae(size: ModelSize) -> AutoencoderKL:
    levels = len(size.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        layers_per_block=size.layers_per_block,
        block_out_channels=size.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=size.vae_norm_groups,
        sample_size=256,
        scaling_factor=SCALING_FACTOR,
    )


@torch.no_grad()
def widen_latents(vae: AutoencoderKL) -> None:
    """Rescale a random VAE so that its scaled latents have a standard deviation of about 1, as trained ones have."""
    pictures = F.interpolate(torch.rand(4, 3, 16, 16) * 2 - 1, 256, mode="bicubic")
    layer, channels = vae.quant_conv, vae.config.latent_channels  # its outputs: means, then log variances
    layer.weight[:channels] /= SCALING_FACTOR * vae.encode(pictures).latent_dist.mean.std()
    layer.bias[:channels] = 0
    layer.weight[channels:] = 0
    layer.bias[channels:] = -12


def save_pipeline(
    folder: str | Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    *,
    sd2: bool = False,
    v_prediction: bool = False,
) -> Path:
    """Write the models, CLIP's tokenizer and SD's noise schedule in the layout of published SD repositories."""
    folder = Path(folder)
    write_tokenizer(folder / "tokenizer", pad_token="!" if sd2 else "<|endoftext|>")
    return save_models(folder, vae, text_encoder, unet, v_prediction=v_prediction)


def save_models(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    *,
    v_prediction: bool = False,
) -> Path:
    """Write the models and SD's noise schedule to a folder that has a tokenizer."""
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction" if v_prediction else "epsilon",
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    _prefix_text_encoder_keys(folder / "text_encoder" / "model.safetensors")
    return folder


def _prefix_text_encoder_keys(file: Path) -> None:
    """Name the weights as every published SD repository does: transformers 5 leaves out ``text_model.``."""
    prefix = "text_model."
    weights = {prefix + key.removeprefix(prefix): tensor.clone() for key, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def write_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> None:
    """Write CLIP's byte-pair tokenizer from the merges that the package open_clip_torch ships."""
    save_tokenizer(folder, _read_merges(), 77, pad_token)


def save_tokenizer(folder: Path, merges: list[str], max_length: int, pad_token: str = "<|endoftext|>") -> int:
    """Write a byte-pair tokenizer in CLIP's format; returns the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = _byte_characters()
    vocabulary = characters + [c + "</w>" for c in characters] + [m.replace(" ", "") for m in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = pad_token
    _write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", {**settings, **special, "add_prefix_space": False})
    return len(vocabulary)


def _read_merges() -> list[str]:
    # Only the data file is wanted: importing open_clip itself would need torchvision.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise SystemExit("make_tiny_sd: the tokenizer needs open_clip_torch: pip install --no-deps open_clip_torch")
    with gzip.open(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return lines[1 : 1 + VOCABULARY_SIZE - 2 * 256 - 2]  # after a header; 256 bytes in two forms and two special tokens


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in CLIP's vocabulary, in the order of its first 256 tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="make a small Stable Diffusion model with random weights")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sd2", action="store_true", help="SD 2's layout instead of SD 1's")
    parser.add_argument("--v-prediction", action="store_true", help="the UNet predicts v, not the noise")
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    folder = make_tiny_sd(**vars(arguments))
    print(f"{arguments.size} model in {folder}")


if __name__ == "__main__":
    main()
