"""Train a small model on eight photos with ed-train, and show what it drew before and draws now.

    make demo                     # or, in examples/: python -m demo.demo

Further flags go to ed-train, e.g. ``make demo ARGS="--max_steps 100"``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ed_train.models.quiet import quiet_libraries
from PIL import Image, ImageDraw, ImageFont

with quiet_libraries():  # they warn about packages that they would like to have
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from demo.make_model import make_model
    from demo.photos import make_demo_photos

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / ".work" / "demo"

RESOLUTION = 128
TILE = 176
LINE = 20
GUIDANCE_SCALE = 1.5


def run_demo(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Make a model and photos, train, and draw the picture ``before_after.png``.

    Args:
        folder: where everything is written.
        flags: given to ed-train after the demo's own.

    Returns:
        The picture.

    Raises:
        subprocess.CalledProcessError: ed-train failed.
    """
    print("making a model with a random UNet and text encoder, and eight photos with captions ...", flush=True)
    with quiet_libraries():
        model = make_model(folder / "model")
    photos = make_demo_photos(folder / "photos")
    checkpoint, seconds = train(folder, model, flags)

    print(f"drawing with {model} and {checkpoint} ...", flush=True)
    picture = folder / "before_after.png"
    before, after = draw(model, list(photos)), draw(checkpoint, list(photos))
    compare(photos, before, after).save(picture)
    print(f"\ntrained for {seconds:.0f} s; diffusers' StableDiffusionPipeline opens the result")
    print(f"  checkpoint       {checkpoint}")
    print(f"  samples and logs {checkpoint.parents[1]}")
    print(f"  before and after {picture}")
    return picture


def train(folder: Path, model: Path, flags: Sequence[str]) -> tuple[Path, float]:
    """Run ed-train as a user would; return the checkpoint and the seconds that it took."""
    command = ["ed-train", "--config", HERE / "train.json", "--resume_ckpt", model]
    command += ["--data_root", folder / "photos", "--logdir", folder / "logs", *flags]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # the model is too small for threads to share
    print(f"$ OMP_NUM_THREADS={environment['OMP_NUM_THREADS']}", *command, flush=True)
    earlier, began = _checkpoints(folder), time.monotonic()
    subprocess.run([sys.executable, "-m", "ed_train", *map(str, command[1:])], check=True, env=environment)
    new = _checkpoints(folder) - earlier
    if not new:
        sys.exit(f"ed-train saved no checkpoint below {folder / 'logs'}: there is nothing to draw with")
    return max(new, key=lambda path: path.stat().st_mtime), time.monotonic() - began


def _checkpoints(folder: Path) -> set[Path]:
    return set((folder / "logs").glob("*/ckpts/last-*"))


def draw(model: Path, prompts: list[str]) -> list[Image.Image]:
    """One picture for each prompt, always from the same noise."""
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        pictures: list[Image.Image] = pipeline(
            prompts,
            width=RESOLUTION,
            height=RESOLUTION,
            num_inference_steps=30,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        ).images
    return pictures


def compare(photos: Mapping[str, Path], before: list[Image.Image], after: list[Image.Image]) -> Image.Image:
    """A row for each prompt: before training, after it, and the photo."""
    sheet = Image.new("RGB", (3 * TILE, LINE + len(photos) * (TILE + LINE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, title in enumerate(("before", "after", "photo")):
        pen.text((column * TILE + 4, 2), title, fill="black", font=font)
    for row, (prompt, photo) in enumerate(photos.items()):
        top = LINE + row * (TILE + LINE)
        for column, tile in enumerate((before[row], after[row], Image.open(photo))):
            sheet.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (column * TILE, top))
        pen.text((4, top + TILE + 1), prompt, fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="train a small model on eight photos; further flags go to ed-train")
    parser.add_argument("--folder", type=Path, default=WORK, help="where everything is written")
    arguments, flags = parser.parse_known_args()
    try:
        run_demo(arguments.folder, flags)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # ed-train has said what is wrong


if __name__ == "__main__":
    main()
