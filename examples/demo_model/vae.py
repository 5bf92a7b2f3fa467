"""Train a small VAE on generated pictures: one of each two a scene, the other a heap of figures in any colour.

The figures make it a VAE for flat pictures in general, so that it also shows what the model is taught later. The loss
is the absolute error of pixels and of their differences to their neighbours (which keeps edges sharp), and a little of
the KL divergence (which keeps latents smooth).

Its first weights are no noise: they reduce a picture to its local mean colours and enlarge these again, and training
begins with that. From random weights it would take ten times as long to get the colours right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image, ImageDraw
from torch import Tensor

from demo_model.scenes import SIZE, draw, random_scene

LATENTS = 4
WIDTH = 32
CARRIERS = 8
"""Channels with a meaning in `begin_with_mean_colours`."""
CONSTANT = 6.0
LOG_VARIANCE = -6.0

BATCH = 4
PEAK_LR = 1e-3
KL_WEIGHT = 1e-4
NOISE = 0.12
"""Standard deviation of the noise that the decoder learns to undo, at most, of latents with one of 1."""
REPORT_STEPS = 100

Report: TypeAlias = Callable[[int, float], None]


def new_vae() -> AutoencoderKL:
    """A VAE that shrinks pictures to a quarter: 64 x 64 pixels to 4 x 16 x 16 latents."""
    return AutoencoderKL(
        latent_channels=LATENTS,
        layers_per_block=0,
        block_out_channels=(WIDTH,) * 3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=1,  # statistics over all channels: with more groups a plain ground would lose its colour
        sample_size=SIZE,
    )


@torch.no_grad()
def begin_with_mean_colours(vae: AutoencoderKL) -> None:
    """Set weights so that decode(encode(picture)) is about the picture, reduced to a quarter and enlarged.

    Of the channels, 0 to 2 carry red, green and blue, 3 to 5 the same negated: since ``silu(x) - silu(-x) = x``, the
    activation in front of the last layers is undone. Channels 6 and 7 carry a large constant, so that the norm there
    divides by almost the same number for every picture. The others keep their random weights; that
    number leaves them out, and so contrast comes out at about 0.87 of the picture's.
    """
    encoder, decoder = vae.encoder, vae.decoder
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            for parameter in module.conv2.parameters():
                parameter.zero_()
        elif isinstance(module, Attention):
            for parameter in module.to_out[0].parameters():
                parameter.zero_()
    norm = CONSTANT * math.sqrt(2 / WIDTH)  # what the norm divides by
    for layer in (encoder.conv_in, decoder.conv_in):
        layer.weight[:CARRIERS] = 0
        layer.bias[:CARRIERS] = torch.tensor([0.0] * 6 + [CONSTANT, -CONSTANT])
        for channel in range(3):
            layer.weight[channel, channel, 1, 1] = 1
            layer.weight[channel + 3, channel, 1, 1] = -1
    resamplers = [block.downsamplers[0].conv for block in encoder.down_blocks[:-1]]
    resamplers += [block.upsamplers[0].conv for block in decoder.up_blocks[:-1]]
    for layer in resamplers:
        layer.weight[:CARRIERS] = 0
        layer.bias[:CARRIERS] = 0
        for channel in range(CARRIERS):
            if layer.stride == (2, 2):
                layer.weight[channel, channel, :2, :2] = 0.25
            else:
                layer.weight[channel, channel, 1, 1] = 1
    for layer, scale in ((encoder.conv_out, 2.0), (decoder.conv_out, 0.1)):
        layer.weight.mul_(scale)  # of the channels that carry nothing yet
        layer.weight[:3] = 0
        layer.bias[:3] = 0
        for channel in range(3):
            layer.weight[channel, channel, 1, 1] = norm
            layer.weight[channel, channel + 3, 1, 1] = -norm
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENTS).view(2 * LATENTS, 2 * LATENTS, 1, 1))
    vae.quant_conv.weight[LATENTS:] = 0
    vae.quant_conv.bias.copy_(torch.tensor([0.0] * LATENTS + [LOG_VARIANCE] * LATENTS))
    vae.post_quant_conv.weight.copy_(torch.eye(LATENTS).view(LATENTS, LATENTS, 1, 1))
    vae.post_quant_conv.bias.zero_()


def train_vae(steps: int, seed: int, report: Report) -> AutoencoderKL:
    """Train encoder and decoder for `steps`.

    Args:
        steps: batches of BATCH pictures.
        seed: of weights and pictures.
        report: called now and then with the step and the mean absolute error of pixels, of a range of 2.

    Returns:
        The VAE, its scaling factor set so that latents have a standard deviation of 1.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = new_vae().to(memory_format=torch.channels_last)
    begin_with_mean_colours(vae)

    def loss() -> tuple[Tensor, Tensor]:
        batch = random_batch(BATCH, rng)
        posterior = vae.encode(batch).latent_dist
        latents = posterior.sample()
        error, edges = errors_of(vae.decode(latents).sample, batch)
        return error + edges + KL_WEIGHT * posterior.kl().mean() / latents[0].numel(), error

    _train(list(vae.parameters()), loss, steps, report)
    with torch.no_grad():
        deviation = vae.encode(random_batch(64, rng)).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=1 / deviation)
    return vae


def train_decoder(vae: AutoencoderKL, steps: int, seed: int, report: Report) -> None:
    """Train the decoder alone for `steps`, on noisy latents: a UNet's latents are never quite right either.

    The latents stay what they are, so that this can be done before or after a UNet has learned them.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae.to(memory_format=torch.channels_last)

    def loss() -> tuple[Tensor, Tensor]:
        batch = random_batch(BATCH, rng)
        with torch.no_grad():
            latents = vae.encode(batch).latent_dist.mean
        noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1) * NOISE / vae.config.scaling_factor
        error, edges = errors_of(vae.decode(latents + noise).sample, batch)
        return error + edges, error

    _train([*vae.decoder.parameters(), *vae.post_quant_conv.parameters()], loss, steps, report)


def _train(parameters: list[Tensor], loss_of: Callable[[], tuple[Tensor, Tensor]], steps: int, report: Report) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    errors = []
    for step in range(1, steps + 1):
        loss, error = loss_of()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        errors.append(error.item())
        if step % REPORT_STEPS == 0 or step == steps:
            report(step, sum(errors) / len(errors))
            errors.clear()


def random_batch(count: int, rng: random.Random) -> Tensor:
    pictures = [draw(random_scene(rng), rng) if i % 2 else random_figures(rng) for i in range(count)]
    return to_tensor(pictures).contiguous(memory_format=torch.channels_last)


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """[n, 3, height, width] in -1..1."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def random_figures(rng: random.Random) -> Image.Image:
    """Up to twelve ellipses, rectangles, polygons and lines, any size and colour."""
    side = 4 * SIZE

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    picture = Image.new("RGB", (side, side), colour())
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(2, 12)):
        x, y, width, height = (rng.uniform(0, side) for _ in range(4))
        scale = rng.choice((0.15, 0.3, 0.6))
        box = (x - width * scale, y - height * scale, x + width * scale, y + height * scale)
        kind = rng.randrange(4)
        if kind == 0:
            pen.ellipse(box, fill=colour())
        elif kind == 1:
            pen.rectangle(box, fill=colour())
        elif kind == 2:
            corners = [(x + side * scale * rng.gauss(0, 0.6), y + side * scale * rng.gauss(0, 0.6)) for _ in range(4)]
            pen.polygon(corners, fill=colour())
        else:
            pen.line(box, fill=colour(), width=rng.randint(4, 24))
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def errors_of(decoded: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """The mean absolute error of pixels, and that of their differences to their neighbours."""
    return (decoded - batch).abs().mean(), (differences(decoded) - differences(batch)).abs().mean()


def differences(pictures: Tensor) -> Tensor:
    """Of each pixel to its right and its lower neighbour."""
    inner = pictures[..., :-1, :-1]
    return torch.cat([pictures[..., 1:, :-1] - inner, pictures[..., :-1, 1:] - inner], dim=1)
