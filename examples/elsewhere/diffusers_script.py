#!/usr/bin/env python
"""An optimizer of ed-train in the loop of diffusers' training scripts: accelerate, checkpoints, resume.

    python examples/elsewhere/diffusers_script.py --optimizer prodigy
    python examples/elsewhere/diffusers_script.py --optimizer adamw --option lr=1e-3
    python examples/elsewhere/diffusers_script.py --steps 50 --output out
    python examples/elsewhere/diffusers_script.py --steps 100 --resume out/checkpoint-50

A tiny UNet with random weights learns to denoise crops of three photos that scikit-image ships. A table of embeddings
takes the place of a text encoder.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import skimage.data
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, UNet2DConditionModel
from ed_train import EdTrainError, create_optimizer, effective_lr
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset

PHOTOS = ("astronaut", "chelsea", "coffee")
SIZE, CROPS = 16, 48  # pixels; pictures
BATCH, ACCUMULATION, WARMUP, LOG_STEPS = 4, 2, 10, 10
SCHEDULE = DDPMScheduler(num_train_timesteps=1000)


class Denoiser(nn.Module):
    """A UNet, and an embedding of each photo in place of a text encoder's output."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
        )  # fmt: skip
        self.prompts = nn.Embedding(len(PHOTOS), 32)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """The noise [N, 3, 16, 16] that it sees in noisy pictures [N, 3, 16, 16]; timesteps and photos are [N]."""
        noise: torch.Tensor = self.unet(noisy, timesteps, self.prompts(photos)[:, None]).sample
        return noise


def main() -> None:
    """Train, and print the loss before and after."""
    arguments = parse_arguments()
    set_seed(0)
    accelerator = Accelerator(
        gradient_accumulation_steps=ACCUMULATION,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # a resumed run draws the same batches
    )
    pictures = TensorDataset(*crops())
    model: Any = Denoiser()

    # One lr for all groups: Prodigy and D-Adaptation estimate a single step size. Other options may differ.
    groups = [
        {"params": list(model.unet.parameters())},
        {"params": list(model.prompts.parameters()), "weight_decay": 0.0},
    ]
    try:
        optimizer: Any = create_optimizer(arguments.optimizer, groups, **dict(arguments.option))
    except EdTrainError as error:  # not installed, no such option, out of range: the text says what to do
        sys.exit(f"error: {error}")

    # accelerate steps it once per process. It begins above 0, where dadapt_sgd would fail.
    warmup: Any = LinearLR(optimizer, start_factor=0.1, total_iters=WARMUP * accelerator.num_processes)
    # A generator of its own: the loader would draw from the one of the noise, and a resumed run draw other noise.
    loader: Any = DataLoader(pictures, BATCH, shuffle=True, drop_last=True, generator=torch.Generator())
    model, optimizer, loader, warmup = accelerator.prepare(model, optimizer, loader, warmup)
    step = 0
    if arguments.resume:  # weights, states of optimizer and schedule, random generators
        accelerator.load_state(str(arguments.resume))
        step = int(arguments.resume.name.partition("-")[2])

    accelerator.print(f"before: loss {evaluate(model, pictures, accelerator.device):.4f}")
    for batch, photos in batches(accelerator, loader, first=step * ACCUMULATION, end=arguments.steps * ACCUMULATION):
        with accelerator.accumulate(model):
            loss = denoising_loss(model, batch, photos)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warmup.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            if step % LOG_STEPS == 0:
                lr = effective_lr(arguments.optimizer, optimizer.param_groups[0])
                accelerator.print(f"step {step}: loss {loss:.4f}, lr {lr:.2e}")
    accelerator.print(f"after: loss {evaluate(model, pictures, accelerator.device):.4f}")
    if arguments.output:
        accelerator.save_state(str(arguments.output / f"checkpoint-{step}"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a tiny UNet with an optimizer of ed-train.")
    parser.add_argument("--optimizer", default="prodigy", help="see ed-train --list-optimizers")
    parser.add_argument(
        "--option", action="append", type=option, default=[], metavar="KEY=VALUE", help="e.g. lr=1e-3; several times"
    )
    parser.add_argument("--steps", type=int, default=100, help="of the whole run, with those before a resume")
    parser.add_argument("--output", type=Path, help="folder for a checkpoint at the end")
    parser.add_argument("--resume", type=checkpoint, help="a checkpoint-N to go on from, with the same options")
    return parser.parse_args()


def option(text: str) -> tuple[str, Any]:
    """``lr=1e-3`` as ``("lr", 0.001)``; a value is what it would be in optimizer.json."""
    key, _, value = text.partition("=")
    return key, json.loads(value)


def checkpoint(text: str) -> Path:
    """The folder of a checkpoint, whose name says how many steps it has behind it."""
    if not re.fullmatch(r"checkpoint-\d+", Path(text).name) or not Path(text, "optimizer.bin").is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a checkpoint-N that --output has written")
    return Path(text)


def crops() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [48, 3, 16, 16] in -1 to 1 out of the photos, and which photo each of them is from [48]."""
    photos = torch.arange(CROPS) % len(PHOTOS)
    small = []
    for name in PHOTOS:
        photo = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float()
        small.append(F.interpolate(photo, (2 * SIZE, 2 * SIZE), mode="area")[0] / 127.5 - 1)
    corners = torch.randint(SIZE, (CROPS, 2)).tolist()
    pictures = [
        small[photo][:, y : y + SIZE, x : x + SIZE] for photo, (y, x) in zip(photos.tolist(), corners, strict=True)
    ]
    return torch.stack(pictures), photos


def batches(accelerator: Any, loader: Any, first: int, end: int) -> Iterator[list[torch.Tensor]]:
    """The batches from `first` to before `end`, counted over all epochs."""
    for epoch in range(first // len(loader), -(-end // len(loader))):
        begin = epoch * len(loader)
        rest = accelerator.skip_first_batches(loader, max(first - begin, 0))
        rest.set_epoch(epoch)
        yield from islice(rest, max(end - max(first, begin), 0))


def denoising_loss(
    model: Any, pictures: torch.Tensor, photos: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mean squared error of the predicted noise, at random timesteps."""
    timesteps = torch.randint(SCHEDULE.config.num_train_timesteps, (len(pictures),), generator=generator)
    timesteps = timesteps.to(pictures.device)
    noise = torch.randn(pictures.shape, generator=generator).to(pictures.device)
    return F.mse_loss(model(SCHEDULE.add_noise(pictures, noise, timesteps), timesteps, photos), noise)


@torch.no_grad()
def evaluate(model: Any, dataset: TensorDataset, device: torch.device) -> float:
    """The loss over all pictures with the same noise every time."""
    pictures, photos = (column.to(device) for column in dataset.tensors)
    return denoising_loss(model, pictures, photos, torch.Generator().manual_seed(1)).item()


if __name__ == "__main__":
    main()
