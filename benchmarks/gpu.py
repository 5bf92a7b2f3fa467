#!/usr/bin/env python
"""Compare ed-train with the floor on a GPU: SD 1.5's size with random weights, 512 px, bfloat16, AdamW.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --peak 312          # the GPU's dense bfloat16 TFLOP/s, if its name does not tell

Prints seconds per step in turns, peak memory, and the share of the GPU's arithmetic that the model's operations use.
Without a GPU it says so, and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import torch  # noqa: E402
from rows import BATCH_SIZE, GPU, make_assets, trainer_flags  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from turns import Program, alone, in_turns  # noqa: E402

PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.0, "3090": 71.0}
"""Dense bfloat16 TFLOP/s of NVIDIA's data sheets, by a part of the GPU's name."""
WARM_UP, TURNS, STEPS = 4, 6, 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, help="dense bfloat16 TFLOP/s of the GPU")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where models and photos go")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured")
        return
    found, name = measure(options.folder.resolve()), torch.cuda.get_device_name()
    peak = options.peak or next((peak for part, peak in PEAKS.items() if part in name), None)
    operations = operations_of_a_step()
    print(f"{name}, torch {torch.__version__}: {GPU.title}, batch {BATCH_SIZE}, {operations / 1e12:.2f} TFLOP a step\n")
    print("| program | s/step | peak GPU memory, GB | TFLOP/s | share of the peak |\n|---|---|---|---|---|")
    for program, result in found.items():
        seconds = statistics.median(result["turns"])
        rate = operations / seconds / 1e12
        share = f"{rate / peak:.0%}" if peak else "unknown: give --peak"
        print(f"| {program} | {seconds:.4f} | {result['gpu']:.2f} | {rate:.0f} | {share} |")
    pairs = zip(found["trainer"]["turns"], found["floor"]["turns"], strict=True)
    print(f"\ntrainer / floor: {statistics.median(mine / other for mine, other in pairs):.3f}")


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """Floor and trainer in turns; the caches are full before."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / GPU.size)
    assets = make_assets(folder, GPU)
    steps = WARM_UP + TURNS * STEPS
    trainer = [str(HERE / "trainer.py"), *trainer_flags(GPU, assets, folder, "default", steps)]
    files = (assets.model, assets.photos, assets.sizes)
    floor = [str(HERE / "floor.py"), GPU.key, *map(str, files), "bf16", str(steps)]
    alone([*trainer, "--max_steps=1"])
    return in_turns({"floor": Program(floor, STEPS, WARM_UP), "trainer": Program(trainer, STEPS, WARM_UP)})


def sizes() -> Any:
    """SD 1.5's widths."""
    from make_tiny_sd import ModelSize

    return ModelSize((320, 640, 1280, 1280), 32, 8, 768, 12, 12, (128, 256, 512, 512), 32)


def make_model(folder: Path) -> None:
    """A diffusers folder of SD 1.5's size with random weights, made once."""
    from make_tiny_sd import make_text_encoder, make_unet, make_vae, save_pipeline, widen_latents

    if (folder / "model_index.json").exists():
        return
    torch.manual_seed(0)
    vae = make_vae(sizes())
    widen_latents(vae)
    save_pipeline(folder, vae, make_text_encoder(sizes()), make_unet(sizes()))


def operations_of_a_step() -> int:
    """Floating-point operations of a forward and a backward pass over a batch, as the shapes alone tell."""
    from make_tiny_sd import make_text_encoder, make_unet

    side = GPU.resolution // 8
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet, text_encoder = make_unet(sizes()), make_text_encoder(sizes())
        embeddings = text_encoder(torch.zeros(BATCH_SIZE, 77, dtype=torch.int64))[0]
        noise, timesteps = torch.zeros(BATCH_SIZE, 4, side, side), torch.zeros(BATCH_SIZE, dtype=torch.int64)
        torch.autograd.backward(unet(noise, timesteps, embeddings).sample.sum())
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
