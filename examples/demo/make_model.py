"""Make the model that the demo trains: the VAE that is kept beside this file; all else has random weights.

Run it in examples/: ``python -m demo.make_model OUT``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from make_tiny_sd import ModelSize, make_text_encoder, make_unet, save_pipeline

from demo.make_vae import VAE_FOLDER

SIZE = ModelSize(
    unet_channels=(32, 64, 128, 128),
    unet_norm_groups=16,
    unet_heads=2,
    text_width=64,
    text_layers=4,
    text_heads=4,
    vae_channels=(16, 32, 64, 64),
    vae_norm_groups=8,
    layers_per_block=1,
)


def make_model(folder: Path, seed: int = 0) -> Path:
    """Write the model as a diffusers folder. It predicts v, which is learned in fewer steps than the noise."""
    vae = AutoencoderKL.from_pretrained(VAE_FOLDER, torch_dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder, unet = make_text_encoder(SIZE), make_unet(SIZE)
    return save_pipeline(folder, vae, text_encoder, unet, v_prediction=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="make the model that the demo trains")
    parser.add_argument("folder", type=Path)
    print(f"model in {make_model(parser.parse_args().folder)}")


if __name__ == "__main__":
    main()
