"""Train the demo's VAE: how the folder vae/ beside this file was made.

    python -m demo.make_vae        # in examples/; about half an hour on one core, and no part of `make demo`

A VAE with random weights turns every picture into noise, and a real one has 84 M parameters. This one has 1 M and has
seen nothing but the demo's photos, which is enough to show them at 128 px. The loss is the absolute error of pixels and
of their differences to their neighbours (which keeps edges sharp), and a little of the KL divergence.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from make_photos import load_sources
from PIL.Image import Image, Resampling
from torch import Tensor

from demo.photos import PHOTOS

VAE_FOLDER = Path(__file__).parent / "vae"
CROP = 64
BATCH = 4
PEAK_LR = 2e-3
KL_WEIGHT = 5e-4
REPORT_STEPS = 250


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=128,
    )


def train(steps: int, folder: Path, seed: int = 0) -> None:
    """Train for `steps` and write the VAE in half precision, also along the way."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the layers are too small to share
    rng = random.Random(seed)
    pictures = [source.picture for source in load_sources(PHOTOS)]
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    error = 0.0
    for step in range(1, steps + 1):
        batch = torch.stack([random_patch(rng.choice(pictures), rng) for _ in range(BATCH)])
        loss, pixel_error = loss_of(vae, batch.contiguous(memory_format=torch.channels_last))
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        error += pixel_error.item() / REPORT_STEPS
        if step % REPORT_STEPS == 0 or step == steps:
            print(f"step {step}: mean absolute error {error:.3f}", flush=True)
            error = 0.0
            save(vae, pictures, folder)


def random_patch(picture: Image, rng: random.Random) -> Tensor:
    """A patch of CROP pixels, (3, CROP, CROP) in -1..1, of the picture reduced so that it is 128 to 150 px high."""
    width = CROP * min(picture.size) / rng.uniform(128, 150)
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - width)
    patch = to_tensor(picture, CROP, (left, top, left + width, top + width))
    return patch.flip(2) if rng.random() < 0.5 else patch


def to_tensor(picture: Image, size: int, box: tuple[float, float, float, float]) -> Tensor:
    pixels = np.array(picture.resize((size, size), Resampling.LANCZOS, box=box))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def loss_of(vae: AutoencoderKL, batch: Tensor) -> tuple[Tensor, Tensor]:
    posterior = vae.encode(batch).latent_dist
    latents = posterior.sample()
    decoded = vae.decode(latents).sample
    pixel_error = (decoded - batch).abs().mean()
    edge_error = (differences(decoded) - differences(batch)).abs().mean()
    return pixel_error + edge_error + KL_WEIGHT * posterior.kl().mean() / latents[0].numel(), pixel_error


def differences(pictures: Tensor) -> Tensor:
    inner = pictures[..., :-1, :-1]
    return torch.cat([pictures[..., 1:, :-1] - inner, pictures[..., :-1, 1:] - inner], dim=1)


@torch.no_grad()
def save(vae: AutoencoderKL, pictures: list[Image], folder: Path) -> None:
    """Write it with the scaling factor that gives the photos' latents a standard deviation of 1."""
    squares = [to_tensor(p, 128, (0, 0, min(p.size), min(p.size))) for p in pictures]
    deviation = vae.encode(torch.stack(squares)).latent_dist.mean.std().item()
    saved = new_vae()
    saved.load_state_dict(vae.state_dict())
    saved.register_to_config(scaling_factor=1 / deviation)
    saved.half().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="train the demo's VAE")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=VAE_FOLDER)
    arguments = parser.parse_args()
    train(arguments.steps, arguments.folder)


if __name__ == "__main__":
    main()
