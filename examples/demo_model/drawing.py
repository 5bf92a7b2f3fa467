"""Draw with a model, and lay pictures out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ed_train.models.quiet import quiet_libraries
from PIL import Image, ImageDraw, ImageFont

with quiet_libraries():  # they warn about packages that they would like to have
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

TILE = 128
GAP = 6
LINE = 14
GUIDANCE_SCALE = 3.0
STEPS = 30


def draw(model: Path, prompts: Sequence[str], seeds: Iterable[int], steps: int = STEPS) -> list[Image.Image]:
    """One picture for each prompt, each from the noise of its seed."""
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, torch_dtype=torch.float32)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pictures: list[Image.Image] = pipeline(
            list(prompts), num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE, generator=generators
        ).images
    return pictures


def tile(picture: Image.Image, side: int = TILE) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def write_lines(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, size: int = 12) -> None:
    """Write a text that wraps at so many pixels."""
    font, lines = ImageFont.load_default(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if pen.textlength(longer, font) <= width else [*lines, word]
    pen.multiline_text(place, "\n".join(lines), fill="black", font=font, spacing=2)


def grid(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int) -> Image.Image:
    """All pictures in one, row by row, each with its label below it."""
    step = TILE + GAP
    height = TILE + 3 * LINE + GAP
    sheet = Image.new("RGB", (columns * step + GAP, -(-len(pictures) // columns) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = GAP + index % columns * step, GAP + index // columns * height
        sheet.paste(tile(picture), (left, top))
        write_lines(pen, (left, top + TILE + 2), label, TILE)
    return sheet
