"""Small models with random weights, of the classes that Stable Diffusion is made of."""

from __future__ import annotations

import torch

TEXT_WIDTH, TOKENS = 16, 8


def small_unet() -> torch.nn.Module:
    """A UNet2DConditionModel with cross-attention on one of its two levels."""
    from diffusers import UNet2DConditionModel

    unet: torch.nn.Module = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
    )
    return unet


def small_text_encoder() -> torch.nn.Module:
    """A CLIPTextModel of three layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text_encoder: torch.nn.Module = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50,
            hidden_size=TEXT_WIDTH,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    return text_encoder


def unet_output(unet: torch.nn.Module) -> torch.Tensor:
    """The noise that the small UNet predicts for one latent picture, of shape (1, 4, 8, 8)."""
    output: torch.Tensor = unet(torch.ones(1, 4, 8, 8), 10, torch.ones(1, TOKENS, TEXT_WIDTH))[0]
    return output


def text_encoder_output(text_encoder: torch.nn.Module) -> torch.Tensor:
    """The small text encoder's last hidden states for one prompt, of shape (1, 8, 16)."""
    output: torch.Tensor = text_encoder(torch.arange(TOKENS).reshape(1, TOKENS))[0]
    return output
