#!/usr/bin/env python
"""The floor: a minimal hand-written training loop over latents that were encoded beforehand.

Sample the latents, add noise, text encoder, UNet, MSE, backward, torch's fused AdamW, zero_grad; nothing else. Prints
one JSON line with the moment of every optimizer step, as `trainer.py` does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from timing import StepTimes
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

BATCH_SIZE, LR = 4, 1e-6


def main(model: Path, photos: Path, precision: str, epochs: int) -> None:
    """Train for some epochs."""
    diffusers_logging.disable_progress_bar()
    torch.manual_seed(0)
    files = sorted(photos.glob("*.jpg"))
    moments = encode(model, files)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    captions = [f.with_suffix(".txt").read_text() for f in files]
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    unet = UNet2DConditionModel.from_pretrained(model / "unet").train()
    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder").train()
    schedule = DDPMScheduler.from_pretrained(model / "scheduler")
    optimizer = torch.optim.AdamW([*unet.parameters(), *text_encoder.parameters()], lr=LR, fused=True)
    times = StepTimes()
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(files)), BATCH_SIZE):
            mean, std = moments[chosen].chunk(2, dim=1)
            latents = (mean + std * torch.randn_like(mean)) * 0.18215
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(chosen),))
            noisy = schedule.add_noise(latents, noise, timesteps)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                prediction = unet(noisy, timesteps, text_encoder(ids[chosen])[0]).sample
            torch.autograd.backward(F.mse_loss(prediction.float(), noise))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    print(json.dumps(times.result()))


@torch.inference_mode()
def encode(model: Path, files: list[Path]) -> torch.Tensor:
    """Mean and standard deviation of every picture's latents, [files, 8, height / 8, width / 8]."""
    vae = AutoencoderKL.from_pretrained(model / "vae")
    moments = []
    for file in files:
        picture = np.asarray(Image.open(file).convert("RGB").resize((256, 256)), dtype=np.float32)
        pixels = torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None]
        posterior = vae.encode(pixels).latent_dist
        moments.append(torch.cat([posterior.mean, posterior.std], dim=1))
    return torch.cat(moments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
