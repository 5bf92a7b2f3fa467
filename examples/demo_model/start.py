"""The shapes model before training: the VAE, and a UNet and a text encoder with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from make_tiny_sd import save_models
from transformers import CLIPTextConfig, CLIPTextModel

from demo_model.scenes import COLOURS, PATTERNS, PLACES, SHAPES, SIZES, Scene
from demo_model.tokenizer import MAX_LENGTH, write_tokenizer

TEXT_WIDTH = 128


def write_start(folder: Path, vae: AutoencoderKL, seed: int) -> Path:
    """Write it as a diffusers folder. The UNet predicts v, which is learned in fewer steps than the noise."""
    vocabulary = write_tokenizer(folder / "tokenizer", vocabulary_captions())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return save_models(folder, vae, new_text_encoder(vocabulary), new_unet(), v_prediction=True)


def vocabulary_captions() -> list[str]:
    """Captions that together hold every word."""
    places = [Scene("circle", "red", "blue", place=place).caption for place in PLACES]
    things = [Scene(shape, colour, "blue").caption for shape in SHAPES for colour in COLOURS]
    grounds = [Scene("circle", "red", "blue", pattern, size).caption for pattern in PATTERNS for size in SIZES]
    return [*places, *things, *grounds]


def new_text_encoder(vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Three levels, 16 x 16 to 4 x 4; text comes in at the two lower ones. Few groups, so that norms keep colours."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # diffusers' name for the number of heads
        norm_num_groups=4,
    )
