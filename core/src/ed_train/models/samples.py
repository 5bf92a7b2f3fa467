"""Draw sample pictures with the model in training, always from the same noise, and leave no trace in the training."""

from __future__ import annotations

import io
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ed_train.data.buckets import Size, bucket_sizes, nearest_bucket
from ed_train.models.grid import Sample
from ed_train.models.prompts import SamplePrompt, SampleSettings
from ed_train.models.quiet import quiet_libraries
from ed_train.models.samplers import make_sampler
from ed_train.models.text import text_embeddings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Job:
    """One picture to draw."""

    number: int
    row: int
    prompt: str
    negative_prompt: str
    seed: int
    size: tuple[int, int]
    cfg: float


def draw_samples(
    settings: SampleSettings,
    *,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scheduler_config: Mapping[str, Any],
    device: torch.device | str,
    resolution: int,
    clip_skip: int = 0,
    captions: Sequence[str] = (),
    autocast: Autocast = nullcontext,
) -> list[Sample]:
    """Draw every picture of `settings`.

    Noise comes from generators on the CPU, one per picture, so that a picture depends neither on the device nor on
    what it is drawn together with. Training modes and the global random state are afterwards as they were before.

    Args:
        settings: what to draw.
        unet: on `device`, unwrapped.
        text_encoder: on `device`, unwrapped.
        vae: anywhere; it is on `device` only while pictures are drawn.
        tokenizer: the tokenizer.
        scheduler_config: as `SdModel.scheduler_config` returns it.
        device: where to draw.
        resolution: side in pixels of pictures that name no size.
        clip_skip: as in training.
        captions: captions of the training data, for samples with ``random_caption``.
        autocast: makes the context to draw in, e.g. ``accelerator.autocast``.

    Returns:
        The pictures, in the order of `settings.samples` and, for each, of `settings.cfgs`.
    """
    jobs = list(_jobs(settings, resolution, captions))
    together: dict[tuple[tuple[int, int], float], list[_Job]] = defaultdict(list)
    for job in jobs:
        together[job.size, job.cfg].append(job)
    images: dict[int, Image.Image] = {}
    with quiet_libraries(), _drawing((unet, text_encoder, vae), vae, device):
        pipeline = _pipeline(settings, unet, text_encoder, vae, tokenizer, scheduler_config)
        with torch.inference_mode(), autocast():
            for group in together.values():
                for start in range(0, len(group), settings.batch_size):
                    batch = group[start : start + settings.batch_size]
                    drawn = _draw(pipeline, batch, settings.num_inference_steps, clip_skip)
                    images.update(zip((job.number for job in batch), drawn, strict=True))
    return [
        Sample(_stem(job), job.row, job.prompt, job.negative_prompt, job.seed, job.cfg, images[job.number])
        for job in jobs
    ]


def save_samples(
    samples: Sequence[Sample], grid: Image.Image, folder: Path, prefix: str, *, suffix: str = ".jpg"
) -> list[Path]:
    """Write each picture, and last the grid of all, as ``PREFIX-STEM.jpg`` and ``PREFIX-grid.jpg``.

    A .jpg has its prompt, guidance scale and seed as its comment.

    Args:
        samples: the pictures.
        grid: what `sample_grid` made of them.
        folder: made if need be.
        prefix: beginning of the file names, e.g. the step.
        suffix: ``.jpg`` or ``.png``.

    Returns:
        The paths, the grid's last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}-{sample.stem}{suffix}" for sample in samples]
    for path, sample in zip(paths, samples, strict=True):
        _write(sample.image, path, sample.label)
    path = folder / f"{prefix}-grid{suffix}"
    _write(grid, path)
    return [*paths, path]


def _write(image: Image.Image, path: Path, comment: str = "") -> None:
    """Write a picture; Pillow itself does not notice when the disk is full."""
    buffer = io.BytesIO()
    more = {"comment": comment.encode()} if comment and path.suffix == ".jpg" else {}
    image.save(buffer, Image.registered_extensions()[path.suffix], quality=95, **more)
    path.write_bytes(buffer.getvalue())


def _jobs(settings: SampleSettings, resolution: int, captions: Sequence[str]) -> Iterator[_Job]:
    number, side = 0, settings.resolution or resolution
    for index, sample in enumerate(settings.samples):
        seed = settings.seed if sample.seed is None else sample.seed
        if seed == -1:
            seed = random.SystemRandom().randrange(2**32)
        prompt = sample.prompt
        if sample.random_caption and captions:
            prompt = random.Random(f"{seed}/{index}").choice(captions)
        for cfg in settings.cfgs:
            yield _Job(number, index, prompt, sample.negative_prompt, seed, _size(sample, side), cfg)
            number += 1


def _size(sample: SamplePrompt, side: int) -> Size:
    if sample.size is None and sample.aspect_ratio is not None:
        return nearest_bucket(round(sample.aspect_ratio * 1000), 1000, bucket_sizes(side))
    return sample.size or (side, side)


@contextmanager
def _drawing(modules: Iterable[torch.nn.Module], vae: AutoencoderKL, device: torch.device | str) -> Iterator[None]:
    """Evaluation mode, the VAE on the device, and the random state untouched."""
    modes = [(module, module.training) for module in modules]
    home = vae.device
    for module, _ in modes:
        module.eval()
    vae.to(device)
    devices = [device] if torch.device(device).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        vae.to(home)
        for module, training in modes:
            module.train(training)


def _pipeline(
    settings: SampleSettings, unet: Any, text_encoder: Any, vae: Any, tokenizer: Any, config: Mapping[str, Any]
) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_sampler(settings.scheduler, config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    bars = settings.show_progress_bars and sys.stderr.isatty()  # in a file they would run into the next line
    pipeline.set_progress_bar_config(disable=not bars, desc="samples", leave=False)
    return pipeline


def _draw(pipeline: StableDiffusionPipeline, batch: list[_Job], steps: int, clip_skip: int) -> list[Image.Image]:
    """Draw pictures of one size and one guidance scale together."""
    width, height = batch[0].size
    generators = [torch.Generator("cpu").manual_seed(job.seed) for job in batch]
    scale, channels = pipeline.vae_scale_factor, pipeline.unet.config.in_channels
    # Float32 whatever the weights are: the pipeline would draw noise of the text encoder's type.
    noise = [torch.randn((1, channels, height // scale, width // scale), generator=g) for g in generators]
    images: list[Image.Image] = pipeline(
        prompt_embeds=_embed(pipeline, [job.prompt for job in batch], clip_skip),
        negative_prompt_embeds=_embed(pipeline, [job.negative_prompt for job in batch], clip_skip),
        generator=generators,
        latents=torch.cat(noise),
        guidance_scale=batch[0].cfg,
        width=width,
        height=height,
        num_inference_steps=steps,
    ).images
    return images


def _embed(pipeline: StableDiffusionPipeline, texts: list[str], clip_skip: int) -> torch.Tensor:
    """Embed prompts as training embeds captions; the pipeline's own clip_skip fails with transformers >= 5.6."""
    length = pipeline.tokenizer.model_max_length
    tokens = pipeline.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return text_embeddings(pipeline.text_encoder, tokens.input_ids.to(pipeline.text_encoder.device), clip_skip)


def _stem(job: _Job) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", job.prompt.lower()).strip("-")[:50].rstrip("-") or "empty"
    return f"{job.number:02d}-{words}-cfg{job.cfg:g}"
