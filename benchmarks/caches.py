#!/usr/bin/env python
"""What the cache of text embeddings saves in each step, and how long a run takes to its first step, cold and warm.

    python benchmarks/caches.py             # the small model
    python benchmarks/caches.py --quick     # the tiny model, fewer rounds

The text encoder is timed within one process, with and without the cache in turn, with and without its backward pass;
the first step in fresh processes, against one that only imports what a run needs and loads its UNet. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

LAST_LAYERS = 2
IMPORTS = """
import json, sys, time
started = time.perf_counter()
import accelerate, torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
UNet2DConditionModel.from_pretrained(sys.argv[1] + "/unet")
print(json.dumps({"first": time.perf_counter() - started}))
"""
TRAINER = """
import json, sys, time
started = time.perf_counter()
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from ed_train.cli import main
class First(BaseException): pass
moment = 0.0
def forward(module, _):
    global moment
    if not moment and type(module).__name__ == "UNet2DConditionModel":
        moment = time.perf_counter() - started
def step(*_):
    raise First
torch.nn.modules.module.register_module_forward_pre_hook(forward)
register_optimizer_step_pre_hook(step)
try:
    sys.exit(main(sys.argv[1:]) or 1)
except First:
    status = open("/proc/self/status").read()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e6
    print("\\n" + json.dumps({"first": moment, "peak": peak}))
"""
"""Tells when the first step begins, and ends after its backward pass with the peak memory up to there (on Linux)."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model and fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where models and caches go")
    options = parser.parse_args()
    from rows import Row, make_assets

    size, rounds = ("tiny", options.rounds or 2) if options.quick else ("small", options.rounds or 5)
    assets = make_assets(options.folder, Row(size, size, size=size))
    model, photos = assets.model, assets.photos
    flags = {
        "resume_ckpt": model, "data_root": photos, "resolution": 256, "batch_size": 4, "max_epochs": 2,
        "optimizer_config": options.folder / "optimizer-last.json", "logdir": options.folder / "logs",
        "save_nothing": "true", "sample_steps": 0,
    }  # fmt: skip
    adamw = {"base": {"optimizer": "adamw", "lr": 1e-6}}
    freezing = {"text_encoder_freezing": {"unfreeze_last_n_layers": LAST_LAYERS}}
    (options.folder / "optimizer-last.json").write_text(json.dumps({**adamw, **freezing}))
    found = {**text_times(flags, rounds), **first_steps(flags, model, rounds)}
    print(f"\n{size} model, batches of 4, medians of {rounds} rounds (range):\n\n| what | value |\n|---|---|")
    for name, values in found.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"| {name} | {middle:#.3g} ({low:#.3g} to {high:#.3g}) |")


def text_times(flags: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds that the text encoder takes in a step."""
    from ed_train.config.load import load_config
    from ed_train.registry import load_registry
    from ed_train.train.setup import start

    cases = {
        f"last {LAST_LAYERS} layers train": {},
        "text encoder does not train": {"disable_textenc_training": "true"},
    }
    found: dict[str, list[float]] = {}
    for case, more in cases.items():
        sessions = {}
        for cached in ("false", "true"):
            given = {**flags, **more, "cache_text_embeddings": cached}
            session, _ = start(load_config({k: str(v) for k, v in given.items()}, load_registry()))
            sessions[cached] = session, next(session.loader.iterate(0))
        for _ in range(rounds):
            for what, backward in {"forward": False, "forward and backward": True}.items():
                plain, cache = (timed(*sessions[cached], backward=backward) for cached in ("false", "true"))
                found.setdefault(f"{case}: {what}, seconds per step without the cache", []).append(plain)
                found.setdefault(f"{case}: {what}, with it", []).append(cache)
                found.setdefault(f"{case}: {what}, ratio", []).append(cache / plain)
        for session, _ in sessions.values():
            session.close()
    return found


def timed(session: Any, batch: Any, *, backward: bool, repeats: int = 20) -> float:
    """Seconds to embed a batch's captions, and to go back if the text encoder trains; mean of some repeats."""
    seconds = 0.0
    for number in range(repeats + 2):
        started = time.perf_counter()
        embeddings = session.text.embeddings(batch.token_ids, batch.text)
        if backward and embeddings.requires_grad:
            embeddings.sum().backward()
        seconds += time.perf_counter() - started if number >= 2 else 0.0
    return seconds / repeats


def first_steps(flags: dict[str, Any], model: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from the start of a process to its first step, and peak memory, cold and warm."""
    cache = Path(flags["logdir"]).parent / "cold-cache"
    given = [f"--{k}={v}" for k, v in {**flags, "cache_dir": cache, "disable_textenc_training": "true"}.items()]
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        floor = run(["-c", IMPORTS, str(model)])
        shutil.rmtree(cache, ignore_errors=True)
        cold, warm = run(["-c", TRAINER, *given]), run(["-c", TRAINER, *given])
        without = run(["-c", TRAINER, *given, "--cache_text_embeddings=false"])
        rows = {
            "imports and UNet: seconds": floor["first"],
            "first step begins, cold cache: seconds": cold["first"],
            "first step begins, warm cache: seconds": warm["first"],
            "first step begins, warm cache: ratio to imports and UNet": warm["first"] / floor["first"],
            "peak memory up to the first backward pass, warm cache: GB": warm["peak"],
            "the same, text encoder in memory: GB": without["peak"],
        }
        for name, value in rows.items():
            found.setdefault(name, []).append(value)
    return found


def run(arguments: list[str]) -> dict[str, float]:
    """Run Python in a fresh process; returns what it prints last."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{arguments[0]} {arguments[-1]} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
