"""The forward diffusion process: timesteps, noise, targets, and the loss that compares with them.

Everything random about a step comes from one CPU generator that is seeded with the run's seed and the number of the
batch, and is drawn for the whole global batch. So a step is the same on any device, for any number of processes that
share its batch, and after a resume, without any state to save.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ed_train.config.train_keys import TrainConfig


def batch_generator(seed: int, batch_number: int) -> torch.Generator:
    """The random generator of one global batch."""
    return seeded_generator(f"{seed}/{batch_number}")


def seeded_generator(seed: str) -> torch.Generator:
    """A random generator for a text. torch's CPU generator uses 32 bits of a seed, hence the hash."""
    digest = hashlib.blake2b(seed.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class NoisyBatch:
    """What the UNet sees and should say.

    Attributes:
        latents: noisy latents, [batch, 4, height / 8, width / 8], float32.
        timesteps: [batch], int64.
        target: the noise or the velocity, as the model predicts; the shape of `latents`.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor


class Diffusion:
    """Adds noise to latents and weighs the prediction's error, as train.json says.

    Noise offset: https://www.crosslabs.org/blog/diffusion-with-offset-noise. Multi-resolution (pyramid) noise:
    https://wandb.ai/johnowhitaker/multires_noise. Min-SNR weighting: https://arxiv.org/abs/2303.09556. Zero terminal
    SNR: https://arxiv.org/abs/2305.08891; the scheduler carries it in its betas.
    """

    def __init__(self, scheduler: Any, scaling_factor: float, train: TrainConfig, device: torch.device) -> None:
        """Take the noise schedule from diffusers' DDPMScheduler, the latents' scale from the VAE's configuration."""
        alphas = scheduler.alphas_cumprod.to(device, torch.float32)
        self.signal = alphas.sqrt()
        self.noise = (1 - alphas).sqrt()
        self.snr = alphas / (1 - alphas)
        self.steps = len(alphas)
        self.velocity = scheduler.config.prediction_type == "v_prediction"
        self.scaling_factor = scaling_factor
        self.train = train
        self.device = device

    def add_noise(self, mean: Tensor, std: Tensor, generator: torch.Generator, rank: int, world: int) -> NoisyBatch:
        """Sample latents from the VAE's posterior and diffuse them.

        Args:
            mean: this process's part of the batch as the VAE gives it, [batch, 4, h, w].
            std: the posterior's standard deviation, of the same shape.
            generator: the batch's generator, at its beginning.
            rank: index of this process, whose samples are ``rank * batch`` onwards in the global batch.
            world: number of processes.
        """
        batch = len(mean)
        part = slice(rank * batch, (rank + 1) * batch)
        shape = (world * batch, *mean.shape[1:])
        draw = torch.randn((2, *shape), generator=generator)[:, part]
        latents = torch.addcmul(mean, std, draw[0].to(self.device, non_blocking=True)) * self.scaling_factor
        noise = self._shape_noise(draw[1], shape, part, generator).to(self.device, non_blocking=True)
        limits = (self.train.timestep_start, min(self.train.timestep_end, self.steps))
        timesteps = torch.randint(*limits, (world * batch,), generator=generator)[part]
        timesteps = timesteps.to(self.device, non_blocking=True)
        return self._diffused(latents, noise, timesteps)

    def add_fixed_noise(self, mean: Tensor, std: Tensor, places: Sequence[float], seeds: Sequence[str]) -> NoisyBatch:
        """The same, each sample by itself: what it gets does not depend on the others of its batch.

        Args:
            mean: as the VAE gives it, [batch, 4, h, w].
            std: the posterior's standard deviation, of the same shape.
            places: of each sample among the timesteps that are trained, 0 to 1.
            seeds: of each sample's noise.
        """
        shape = (1, *mean.shape[1:])
        draws, noises = [], []
        for seed in seeds:
            generator = seeded_generator(seed)
            draw = torch.randn((2, *shape), generator=generator)
            draws.append(draw[0])
            noises.append(self._shape_noise(draw[1], shape, slice(None), generator))
        first, end = self.train.timestep_start, min(self.train.timestep_end, self.steps)
        timesteps = torch.tensor([min(end - 1, first + int(place * (end - first))) for place in places])
        latents = torch.addcmul(mean, std, torch.cat(draws).to(self.device)) * self.scaling_factor
        return self._diffused(latents, torch.cat(noises).to(self.device), timesteps.to(self.device))

    def _diffused(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> NoisyBatch:
        signal, share = self.signal[timesteps].view(-1, 1, 1, 1), self.noise[timesteps].view(-1, 1, 1, 1)
        noisy = latents * signal + noise * share
        target = noise * signal - latents * share if self.velocity else noise
        return NoisyBatch(noisy, timesteps, target)

    def _shape_noise(self, noise: Tensor, shape: tuple[int, ...], part: slice, generator: torch.Generator) -> Tensor:
        """Offset and pyramid noise, where they are on."""
        if ratio := self.train.zero_frequency_noise_ratio:
            noise = noise + ratio * torch.randn((*shape[:2], 1, 1), generator=generator)[part]
        if discount := self.train.pyramid_noise_discount:
            noise = _pyramid(noise, shape, part, discount, generator)
        return noise

    def loss(self, prediction: Tensor, noisy: NoisyBatch, weights: Tensor | None = None) -> Tensor:
        """Mean error over the batch, a scalar; each sample weighed by its timestep where train.json says so.

        Args:
            prediction: of the UNet, of the shape of the target.
            noisy: what it has seen.
            weights: another factor of each sample's error, [batch], on any device; None for 1.
        """
        kind, target = self.train.loss_type, noisy.target
        if kind == "mse" and self.train.min_snr_gamma is None and weights is None:
            return F.mse_loss(prediction, target)
        errors = torch.zeros((), device=prediction.device)
        share = noisy.timesteps / self.steps if kind == "mse_huber" else float(kind == "huber")
        if kind != "huber":
            errors = errors + (1 - share) * _per_sample(F.mse_loss(prediction, target, reduction="none"))
        if kind != "mse":
            errors = errors + share * _per_sample(F.huber_loss(prediction, target, reduction="none"))
        if weights is not None:
            errors = errors * weights.to(self.device, non_blocking=True)
        return (errors * self._snr_weight(noisy.timesteps)).mean()

    def _snr_weight(self, timesteps: Tensor) -> Tensor | float:
        """Min-SNR weights. At an SNR of 0 the weight for noise prediction is its limit, 1."""
        gamma = self.train.min_snr_gamma
        if gamma is None:
            return 1.0
        snr = self.snr[timesteps]
        if self.velocity:
            return torch.div(torch.clamp(snr, max=gamma), snr + 1)
        return torch.clamp(snr, min=gamma).reciprocal().mul(gamma)


def _per_sample(errors: Tensor) -> Tensor:
    return errors.mean(dim=(1, 2, 3))


def _pyramid(noise: Tensor, shape: tuple[int, ...], part: slice, discount: float, generator: torch.Generator) -> Tensor:
    """Add noise of halved resolutions, each level discounted, and scale back to unit variance."""
    height, width = shape[2:]
    pyramid = noise.clone()
    level = 1
    while min(height, width) >> level >= 1:
        size = (height >> level, width >> level)
        coarse = torch.randn((*shape[:2], *size), generator=generator)[part]
        pyramid.add_(F.interpolate(coarse, (height, width), mode="bilinear"), alpha=discount**level)
        level += 1
    return pyramid.div_(pyramid.std(dim=(1, 2, 3), keepdim=True))  # of each sample, whoever it shares a batch with


def perturb(embeddings: Tensor, scale: float, generator: torch.Generator, rank: int, world: int) -> Tensor:
    """Add Gaussian noise of standard deviation ``scale / sqrt(width)`` to text embeddings, [batch, tokens, width]."""
    batch, tokens, width = embeddings.shape
    noise = torch.randn((world * batch, tokens, width), generator=generator)[rank * batch : (rank + 1) * batch]
    return embeddings + noise.to(embeddings.device, non_blocking=True) * (scale / math.sqrt(width))
