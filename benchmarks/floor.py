#!/usr/bin/env python
"""The floor: a minimal hand-written training loop over latents that were encoded beforehand.

Sample the latents, add noise, text encoder, UNet, MSE, backward, torch's fused AdamW, zero_grad; nothing else. Prints
one JSON line with its step times, as `trainer.py` does.

    python benchmarks/floor.py ROW MODEL PHOTOS SIZES PRECISION STEPS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rows import BATCH_SIZE, GPU, LR, ROWS, Row
from timing import StepTimes
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(row: Row, model: Path, photos: Path, sizes: Path, precision: str, steps: int) -> None:
    """Train for some steps."""
    diffusers_logging.disable_progress_bar()
    torch.manual_seed(0)
    moments = encode(model, photos, json.loads(sizes.read_text()))
    ids = tokenize(model, photos)
    unet = UNet2DConditionModel.from_pretrained(model / "unet").to(DEVICE).train()
    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder").to(DEVICE).train()
    trained = trained_parameters(row, unet, text_encoder)
    cached = None
    if row.trains == "unet":
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            cached = {name: text_encoder(i[None])[0][0].float() for name, i in ids.items()}
        del text_encoder
    schedule = DDPMScheduler.from_pretrained(model / "scheduler")
    optimizer = torch.optim.AdamW([p for ps in trained for p in ps], lr=LR, fused=True)
    batches = endless(moments)
    times = StepTimes()
    for _ in range(steps):
        for _ in range(row.grad_accum):
            names = next(batches)
            mean, std = torch.stack([moments[name] for name in names]).chunk(2, dim=1)
            latents = (mean + std * torch.randn_like(mean)) * 0.18215
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(names),), device=DEVICE)
            noisy = schedule.add_noise(latents, noise, timesteps)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
                if cached is None:
                    embeddings = text_encoder(torch.stack([ids[name] for name in names]))[0]
                else:
                    embeddings = torch.stack([cached[name] for name in names])
                prediction = unet(noisy, timesteps, embeddings).sample
            loss = F.mse_loss(prediction.float(), noise)
            torch.autograd.backward(loss if row.grad_accum == 1 else loss / row.grad_accum)
        if row.clip:
            for parameters in trained:
                nn.utils.clip_grad_norm_(parameters, row.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(json.dumps(times.result()))


def trained_parameters(row: Row, unet: nn.Module, text_encoder: Any) -> list[list[nn.Parameter]]:
    """The parameters that train, of the UNet and of the text encoder; all others are frozen."""
    if row.trains == "unet":
        text_encoder.requires_grad_(False)
    elif row.trains == "last2":
        text_encoder.embeddings.requires_grad_(False)
        text_encoder.encoder.layers[:-2].requires_grad_(False)
    return [found for module in (unet, text_encoder) if (found := [p for p in module.parameters() if p.requires_grad])]


def endless(moments: dict[str, Tensor]) -> Iterator[list[str]]:
    """Batches of pictures of one size, in random order, epoch after epoch."""
    sizes = sorted({tuple(m.shape) for m in moments.values()})
    while True:
        batches = []
        for size in sizes:
            names = [name for name, m in moments.items() if tuple(m.shape) == size]
            names = [names[i] for i in torch.randperm(len(names))]
            batches += [names[i : i + BATCH_SIZE] for i in range(0, len(names), BATCH_SIZE)]
        yield from [batches[i] for i in torch.randperm(len(batches))]


def tokenize(model: Path, photos: Path) -> dict[str, Tensor]:
    """The token ids of every picture's caption."""
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    files = sorted(photos.glob("*.jpg"))
    captions = [f.with_suffix(".txt").read_text().strip() for f in files]
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    return {file.name: row.to(DEVICE) for file, row in zip(files, ids, strict=True)}


@torch.inference_mode()
def encode(model: Path, photos: Path, sizes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Mean and standard deviation of every picture's latents, [8, height / 8, width / 8]."""
    vae = AutoencoderKL.from_pretrained(model / "vae").to(DEVICE)
    moments = {}
    for file in sorted(photos.glob("*.jpg")):
        width, height = sizes[file.name]
        picture = np.asarray(Image.open(file).convert("RGB").resize((width, height)), dtype=np.float32)
        pixels = torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None]
        posterior = vae.encode(pixels.to(DEVICE)).latent_dist
        moments[file.name] = torch.cat([posterior.mean, posterior.std], dim=1)[0]
    return moments


if __name__ == "__main__":
    key, model, photos, sizes, precision, steps = sys.argv[1:]
    (row,) = (row for row in (*ROWS, GPU) if row.key == key)
    main(row, Path(model), Path(photos), Path(sizes), precision, int(steps))
