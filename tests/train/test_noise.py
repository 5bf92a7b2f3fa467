"""The forward process and the loss, against diffusers' own schedulers and the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from ed_train.config.train_keys import TrainConfig
from ed_train.train.noise import Diffusion, NoisyBatch, batch_generator, perturb

CPU = torch.device("cpu")
MEAN = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
STD = torch.full_like(MEAN, 0.1)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def diffusion(prediction: str = "epsilon", zero_snr: bool = False, **settings: object) -> Diffusion:
    scheduler = DDPMScheduler(prediction_type=prediction, rescale_betas_zero_snr=zero_snr, **BETAS)
    return Diffusion(scheduler, 0.18215, TrainConfig(**settings), CPU)


def noisy_batch(of: Diffusion, number: int = 0) -> NoisyBatch:
    return of.add_noise(MEAN, STD, batch_generator(1, number), 0, 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_target_are_those_of_diffusers(prediction: str) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction, **BETAS)
    noisy = noisy_batch(diffusion(prediction))
    draw = torch.randn(2, *MEAN.shape, generator=batch_generator(1, 0))
    latents, noise = (MEAN + STD * draw[0]) * 0.18215, draw[1]
    torch.testing.assert_close(noisy.latents, scheduler.add_noise(latents, noise, noisy.timesteps))
    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, noisy.timesteps)
    torch.testing.assert_close(noisy.target, target)


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    torch.manual_seed(7)
    first = noisy_batch(diffusion(), 5)
    torch.manual_seed(8)
    again, other = noisy_batch(diffusion(), 5), noisy_batch(diffusion(), 6)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.timesteps, again.timesteps)
    assert not torch.equal(first.target, other.target)


def test_seeds_that_differ_above_32_bits_differ() -> None:
    draws = {torch.randn(1, generator=batch_generator(seed, 0)).item() for seed in (1, 1 + 2**32, 1 + 2**33)}
    assert len(draws) == 3


@pytest.mark.parametrize("noise", [{}, {"zero_frequency_noise_ratio": 0.1}, {"pyramid_noise_discount": 0.8}])
def test_two_processes_draw_the_halves_of_what_one_draws(noise: dict[str, float]) -> None:
    of = diffusion(**noise)
    whole = noisy_batch(of)
    halves = [of.add_noise(MEAN[2 * r : 2 * r + 2], STD[:2], batch_generator(1, 0), r, 2) for r in (0, 1)]
    for field in ("latents", "timesteps", "target"):
        torch.testing.assert_close(torch.cat([getattr(h, field) for h in halves]), getattr(whole, field))


def test_timesteps_stay_in_their_range() -> None:
    of = diffusion(timestep_start=200, timestep_end=203)
    drawn = torch.cat([noisy_batch(of, n).timesteps for n in range(50)])
    assert set(drawn.tolist()) == {200, 201, 202}


def test_zero_terminal_snr_ends_in_pure_noise_and_gives_finite_weights() -> None:
    of = diffusion("v_prediction", zero_snr=True, min_snr_gamma=5.0, timestep_start=999)
    noisy = noisy_batch(of)
    torch.testing.assert_close(of.signal[999], torch.tensor(0.0), atol=1e-4, rtol=0)
    assert of.loss(torch.randn_like(noisy.target), noisy).isfinite()
    epsilon = diffusion("epsilon", zero_snr=True, min_snr_gamma=5.0, timestep_start=999)
    assert epsilon.loss(torch.randn_like(noisy.target), noisy).isfinite()


def per_sample_losses(kind: str, noisy: NoisyBatch, prediction: torch.Tensor) -> torch.Tensor:
    error = prediction - noisy.target
    squared = error**2
    huber = torch.where(error.abs() <= 1, 0.5 * squared, error.abs() - 0.5)
    share = (noisy.timesteps / 1000).view(-1, 1, 1, 1)
    chosen = {"mse": squared, "huber": huber, "mse_huber": (1 - share) * squared + share * huber}[kind]
    return chosen.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("kind", ["mse", "huber", "mse_huber"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_against_its_formula(kind: str, prediction: str, gamma: float | None) -> None:
    of = diffusion(prediction, loss_type=kind, min_snr_gamma=gamma)
    noisy = noisy_batch(of)
    guess = torch.randn(noisy.target.shape, generator=torch.Generator().manual_seed(3)) * 2
    weights = torch.ones(4)
    if gamma:
        snr = of.snr[noisy.timesteps]
        weights = snr.clamp(max=gamma) / (snr + (prediction == "v_prediction"))
    expected = (weights * per_sample_losses(kind, noisy, guess)).mean()
    torch.testing.assert_close(of.loss(guess, noisy), expected)
    scales = torch.tensor([0.0, 1.0, 2.0, 0.5])
    expected = (scales * weights * per_sample_losses(kind, noisy, guess)).mean()
    torch.testing.assert_close(of.loss(guess, noisy, scales), expected)


def test_offset_noise_shifts_whole_channels() -> None:
    plain, offset = noisy_batch(diffusion()), noisy_batch(diffusion(zero_frequency_noise_ratio=0.5))
    shift = offset.target - plain.target
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5, rtol=0)
    assert shift.abs().mean() > 0.1


def test_pyramid_noise_has_unit_variance_and_more_low_frequencies() -> None:
    plain, pyramid = noisy_batch(diffusion()).target, noisy_batch(diffusion(pyramid_noise_discount=0.9)).target
    torch.testing.assert_close(pyramid.std(), torch.tensor(1.0), atol=1e-3, rtol=0)
    coarse = [torch.nn.functional.avg_pool2d(t, 4).std() for t in (plain, pyramid)]
    assert coarse[1] > 1.5 * coarse[0]


def test_embedding_perturbation_has_the_stated_deviation() -> None:
    embeddings = torch.zeros(64, 77, 100)
    noise = perturb(embeddings, 2.0, batch_generator(0, 0), 0, 1)
    torch.testing.assert_close(noise.std(), torch.tensor(0.2), atol=1e-3, rtol=0)
    halves = [perturb(embeddings[:32], 2.0, batch_generator(0, 0), rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), noise)
