"""Make a model that draws shapes: ``cd examples && ../.venv/bin/python -m demo_model.make``.

A VAE is trained on generated pictures; then ed-train trains a UNet and a text encoder from random weights, as
``train.json`` beside this file says. What is done already in the work folder is not done again, so that a run that was
interrupted goes on; ed-train itself goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from demo_model.chart import chart
from demo_model.drawing import draw, grid
from demo_model.judge import shape_in
from demo_model.run import ed_train, scalars
from demo_model.scenes import COLOURS, PATTERNS, SHAPES, SIZES, Scene, random_scene, write_training_pictures
from demo_model.start import write_start
from demo_model.vae import Report, train_decoder, train_vae

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / ".work" / "demo_model"
MODEL = WORK / "model"

SEED = 0
VAE_STEPS = 2500
DECODER_STEPS = 8000
PICTURES = 8000
JUDGED = 96
STAGES = {"run": (), "polish": ("--max_steps", "4000", "--lr", "5e-4", "--lr_decay_steps", "4000")}
"""Runs of ed-train, each from the moving average of the one before, and the flags that they add to ``train.json``."""


def make(work: Path, model: Path, flags: list[str]) -> None:
    """Make the model.

    Args:
        work: folder of what is needed on the way.
        model: folder of the finished model.
        flags: given to ed-train after the recipe's own.
    """
    torch.set_num_threads(1)  # the layers are too small to share
    work.mkdir(parents=True, exist_ok=True)
    for name, part in (("encoder", make_vae), ("vae", sharpen)):
        if not (work / name).exists():
            part(work)
    if not (work / "start" / "model_index.json").exists():
        write_start(work / "start", AutoencoderKL.from_pretrained(work / "vae"), SEED)
    if not (work / "pictures").exists():
        write_training_pictures(work / "unfinished", PICTURES, SEED)
        (work / "unfinished").rename(work / "pictures")
    runs = train(work, flags)
    export(runs[-1], work / "vae", model)
    document(runs, model)


def make_vae(work: Path) -> None:
    """Train the VAE."""
    train_vae(VAE_STEPS, SEED, _say("VAE", VAE_STEPS)).save_pretrained(work / "encoder")


def sharpen(work: Path) -> None:
    """Train the VAE's decoder further."""
    vae = AutoencoderKL.from_pretrained(work / "encoder")
    train_decoder(vae, DECODER_STEPS, SEED + 1, _say("decoder", DECODER_STEPS))
    vae.save_pretrained(work / "vae")


def _say(what: str, steps: int) -> Report:
    def report(step: int, error: float) -> None:
        print(f"{what}: step {step}/{steps}: mean absolute error {error:.4f}", flush=True)

    return report


def train(work: Path, flags: list[str]) -> list[Path]:
    """Run ed-train, or go on with its runs; returns their folders."""
    runs: list[Path] = []
    for name, own in STAGES.items():
        run = work / "logs" / name
        if not list(run.glob("ckpts/last-*")):
            start = average_of(runs[-1]) if runs else work / "start"
            files: list[str | Path] = ["--resume_ckpt", start, "--data_root", work / "pictures"]
            output: list[str | Path] = ["--logdir", work / "logs", "--run_name", name]
            resume = ["--resume", "latest"] if list(run.glob("ckpts/*")) else []
            ed_train("--config", HERE / "train.json", *files, *output, *resume, *own, *flags)
        runs.append(run)
    return runs


def average_of(run: Path) -> Path:
    """The moving average of the weights at the end of a run."""
    [average] = run.glob("ckpts/last-*-ema")
    return average


def export(run: Path, vae: Path, model: Path) -> None:
    """Write the moving average of the weights in half precision, with the files that a pipeline needs alone."""
    average = average_of(run)
    pipeline = StableDiffusionPipeline.from_pretrained(
        average, vae=AutoencoderKL.from_pretrained(vae), safety_checker=None, torch_dtype=torch.float16
    )
    pipeline.to(torch.float16).save_pretrained(model)
    shutil.copytree(average / "tokenizer", model / "tokenizer", dirs_exist_ok=True)


def document(runs: list[Path], model: Path) -> None:
    """Draw the training curve and the grid of prompts that training has not seen; count the shapes that are right."""
    curve: list[tuple[int, float]] = []
    for run in runs:
        before = curve[-1][0] if curve else 0
        curve += [(before + step, loss) for step, loss in scalars(run, "loss")]
    chart("loss by step", {"training": curve}, (640, 240)).save(model / "curve.png")
    scenes = held_out_scenes()
    prompts = [scene.caption for scene in scenes]
    grid(draw(model, prompts, seeds=range(len(prompts))), prompts, columns=6).save(model / "held_out.png")
    for size, (right, of) in right_shapes(model, JUDGED).items():
        print(f"{size or 'medium'} shapes that are what an unseen prompt names: {right} of {of}")
    print(f"model in {model}")


def right_shapes(model: Path, scenes: int) -> dict[str, tuple[int, int]]:
    """By size: how many pictures of held-out scenes show the shape that was asked for, and how many there are."""
    rng = random.Random(SEED)
    asked: list[Scene] = []
    while len(asked) < scenes:
        scene = random_scene(rng)
        if scene.held_out:
            asked.append(scene)
    pictures = draw(model, [scene.caption for scene in asked], seeds=range(scenes))
    found = [(s.size, shape_in(p, s) == s.shape) for p, s in zip(pictures, asked, strict=True)]
    by_size = {size: [right for other, right in found if other == size] for size in SIZES}
    return {size: (sum(right), len(right)) for size, right in by_size.items()}


def held_out_scenes() -> list[Scene]:
    """Three scenes of each shape whose shape, colour and ground never come together in training."""
    every = [Scene(shape, colour, ground) for shape in SHAPES for colour in COLOURS for ground in COLOURS]
    scenes = []
    for number, shape in enumerate(SHAPES):
        unseen = [s for s in every if s.shape == shape and s.colour != s.ground and s.held_out]
        for index, scene in enumerate(unseen[:: len(unseen) // 3][:3]):
            pattern = PATTERNS[(number + index) % len(PATTERNS)] if index else ""
            scenes.append(Scene(shape, scene.colour, scene.ground, pattern, list(SIZES)[1 + (number + index) % 2]))
    return scenes


def main() -> None:
    parser = argparse.ArgumentParser(description="make a model that draws shapes; further flags go to ed-train")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is needed on the way")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the finished model")
    arguments, flags = parser.parse_known_args()
    try:
        make(arguments.work, arguments.model, flags)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # ed-train has said what is wrong


if __name__ == "__main__":
    main()
