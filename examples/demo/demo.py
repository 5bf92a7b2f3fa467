"""Teach a model that draws shapes what a robot is: what it draws before, on the way, and afterwards.

    make demo                     # or, in examples/: python -m demo.demo

Further flags go to ed-train, e.g. ``make demo ARGS="--max_steps 100"``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo_model.chart import Curve, chart
from demo_model.drawing import GAP, TILE, draw, tile, write_lines
from demo_model.run import ed_train, scalars
from PIL import Image, ImageDraw, ImageFont

from demo.robot import write_pictures

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "demo_model" / "model"
WORK = HERE.parents[1] / ".work" / "demo"

PROMPTS = {
    "a robot on a blue background": 1,
    "a large robot on a purple background": 2,
    "a robot on a blue striped background": 3,
    "a robot on a red checkered background": 4,
    "a robot on a black background on the left": 5,
    "a red circle on a blue background": 6,
}
"""Prompts and the seeds of their noise. No robot has been seen on blue or purple; the last one is known before."""
VALIDATION = {
    "val_split_mode": "manual",
    "stabilize_training_loss": False,
    "every_n_epochs": 3,
    "timesteps_per_image": 4,
}
"""On robots where none has been seen: does it learn what a robot is, or these pictures?"""
MARGIN = 84
HEAD = 50
SMALL = TILE // 2
ACROSS = 5


def run_demo(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Paint pictures of robots, train with ed-train, and draw the picture ``demo.png``.

    Args:
        folder: where everything is written.
        flags: given to ed-train after the demo's own.

    Returns:
        The picture.

    Raises:
        subprocess.CalledProcessError: ed-train failed.
    """
    print(f"the model draws shapes; it learns what a robot is from the pictures in {folder / 'training'}", flush=True)
    robots = write_pictures(folder)
    began = time.monotonic()
    run = train(folder, flags)
    seconds = time.monotonic() - began
    models = stages(run)
    print("drawing with " + ", ".join(name.replace("\n", ", ") for name in models) + " ...", flush=True)
    rows = {name: draw(model, list(PROMPTS), PROMPTS.values()) for name, model in models.items()}
    curves = {"training": scalars(run, "loss"), "robots elsewhere": scalars(run, "validation/loss/val")}
    picture = folder / "demo.png"
    poster(rows, [Image.open(file) for file in robots], curves).save(picture)
    print(f"\nran ed-train for {seconds:.0f} s; diffusers' StableDiffusionPipeline opens the result")
    print(f"  checkpoint       {list(models.values())[-1]}")
    print(f"  samples and logs {run}")
    print(f"  the picture      {picture}")
    return picture


def train(folder: Path, flags: Sequence[str]) -> Path:
    """Run ed-train; return the folder of its run."""
    earlier = _runs(folder)
    paths: list[str | Path] = ["--resume_ckpt", MODEL, "--data_root", folder / "training", "--logdir", folder / "logs"]
    ed_train("--config", HERE / "train.json", "--validation_config", write_validation(folder), *paths, *flags)
    new = {run for run in _runs(folder) if any(run.glob("ckpts/last-*"))} - earlier
    if not new:
        sys.exit(f"ed-train saved no checkpoint below {folder / 'logs'}: there is nothing to draw with")
    return max(new, key=lambda path: path.stat().st_mtime)


def write_validation(folder: Path) -> Path:
    """Write the validation file of the pictures that `write_pictures` wrote there."""
    settings = {**VALIDATION, "val_data_root": str((folder / "validation").resolve())}
    (folder / "validation.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder / "validation.json"


def _runs(folder: Path) -> set[Path]:
    return {path for path in (folder / "logs").glob("*") if (path / "ckpts").is_dir()}


def stages(run: Path, between: int = 2) -> dict[str, Path]:
    """The model before training, up to so many checkpoints of the way, and the last one, by name."""
    steps = {int(path.name.rsplit("gs", 1)[1]): path for path in run.glob("ckpts/*-gs?????")}
    done = max(steps)
    names = {"before": MODEL}
    for number in range(1, between + 1):  # the first ones are of most interest
        wanted = done * number**2 / (between + 1) ** 2
        nearest = min(steps, key=lambda step: (abs(step - wanted), step))
        if nearest != done:
            names[f"step {nearest}"] = steps[nearest]
    return {**names, f"after\n{done} steps": steps[done]}


def poster(
    rows: Mapping[str, Sequence[Image.Image]], learned: Sequence[Image.Image], curves: Mapping[str, Curve]
) -> Image.Image:
    """A row of pictures for each stage, a column for each prompt; below, what was learned from and the loss."""
    step = TILE + GAP
    width, bottom = MARGIN + len(PROMPTS) * step, HEAD + len(rows) * step
    sheet = Image.new("RGB", (width, bottom + 24 + 4 * (SMALL + 2)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, prompt in enumerate(PROMPTS):
        write_lines(pen, (MARGIN + column * step, 2), prompt, TILE)
    for row, (name, pictures) in enumerate(rows.items()):
        pen.multiline_text((6, HEAD + row * step + TILE // 2 - 10), name, fill="black", font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(tile(picture), (MARGIN + column * step, HEAD + row * step))
    pen.text((MARGIN, bottom + 4), "learned from these", fill="black", font=font)
    for index, picture in enumerate(learned[: 4 * ACROSS]):
        place = MARGIN + index // 4 * (SMALL + 2), bottom + 22 + index % 4 * (SMALL + 2)
        sheet.paste(tile(picture, SMALL), place)
    left = MARGIN + ACROSS * (SMALL + 2) + 20
    sheet.paste(chart("loss by step", curves, (width - left - GAP, 4 * (SMALL + 2))), (left, bottom + 20))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="teach a model what a robot is; further flags go to ed-train")
    parser.add_argument("--folder", type=Path, default=WORK, help="where everything is written")
    arguments, flags = parser.parse_known_args()
    try:
        run_demo(arguments.folder, flags)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # ed-train has said what is wrong


if __name__ == "__main__":
    main()
