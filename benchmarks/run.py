#!/usr/bin/env python
"""Compare ed-train's training loop with the floor, side by side in one run.

    python benchmarks/run.py            # the small model, three rounds
    python benchmarks/run.py --quick    # the tiny model, two rounds, one comparison

Each round runs the floor and the trainer in fresh processes, in turn, on the same pictures with the same optimizer, and
gives a ratio; machines drift, so only ratios within a round mean something. Writes results.json and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))


@dataclass(frozen=True)
class Case:
    """One comparison: precision of the floor, and the flags of the trainer."""

    name: str
    floor_precision: str
    flags: tuple[str, ...]


CASES = (
    Case("float32, same optimizer", "fp32", ("--disable_amp=true",)),
    Case("bfloat16 autocast, same optimizer, bfloat16 floor", "bf16", ("--mixed_precision=bf16",)),
    Case("float32 with grad norm clipping", "fp32", ("--disable_amp=true", "--clip_grad_norm=1")),
)


def main() -> None:
    """Run the comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model and fewer rounds, in under 3 minutes")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of 16 steps in each process")
    parser.add_argument("--cases", type=int, help="only the first so many comparisons")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where models and results go")
    options = parser.parse_args()
    size = "tiny" if options.quick else "small"
    rounds = options.rounds or (2 if options.quick else 3)
    model, photos = make_assets(options.folder, size)
    cases = CASES[: options.cases or (1 if options.quick else None)]
    rows = [measure(case, model, photos, options.folder, rounds, options.epochs) for case in cases]
    report = markdown(rows, f"{size}, epochs {options.epochs}", light_commands())
    print("\n" + report)
    (options.folder / "results.json").write_text(json.dumps(rows, indent=1))
    (options.folder / "results.md").write_text(report)


def make_assets(folder: Path, size: str) -> tuple[Path, Path]:
    """The model and 64 square photos of 256 pixels, made once."""
    from make_photos import make_photos
    from make_tiny_sd import make_tiny_sd

    model, photos = folder / size, folder / "photos"
    if not (model / "model_index.json").exists():
        make_tiny_sd(size, model)
    if not photos.exists():
        make_photos(photos, "square", 64)
    (folder / "optimizer.json").write_text('{"base": {"optimizer": "adamw", "lr": 1e-6}}')
    return model, photos


def measure(case: Case, model: Path, photos: Path, folder: Path, rounds: int, epochs: int) -> dict[str, Any]:
    """Floor and trainer in turn; the trainer's caches are warm, and what it takes to fill them is told apart."""
    floor = [str(HERE / "floor.py"), str(model), str(photos), case.floor_precision, str(epochs)]
    flags = {
        "resume_ckpt": model, "data_root": photos, "resolution": 256, "batch_size": 4, "max_epochs": epochs,
        "optimizer_config": folder / "optimizer.json", "logdir": folder / "logs", "no_save_ckpt": "true",
        "sample_steps": 0, "cond_dropout": 0,
    }  # fmt: skip
    trainer = [str(HERE / "trainer.py"), *(f"--{k}={v}" for k, v in flags.items()), *case.flags]
    run([*trainer, "--max_steps=2"])
    found: dict[str, list[dict[str, Any]]] = {"floor": [], "trainer": []}
    for number in range(rounds):
        found["floor"].append(run(floor))
        found["trainer"].append(run(trainer))
        ratio = found["trainer"][-1]["mean"] / found["floor"][-1]["mean"]
        print(f"{case.name}: round {number + 1}: trainer / floor {ratio:.3f}", flush=True)
    pairs = list(zip(found["trainer"], found["floor"], strict=True))
    ratios = sorted(t["mean"] / f["mean"] for t, f in pairs)
    return {
        "case": case.name,
        "floor": statistics.median(f["mean"] for f in found["floor"]),
        "trainer": statistics.median(t["mean"] for t in found["trainer"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "memory": statistics.median(t["memory"] / f["memory"] for t, f in pairs),
        "first": statistics.median(t["first"] for t in found["trainer"]),
    }


def run(command: list[str]) -> dict[str, Any]:
    """Run a program in a fresh process; what it prints last, and its peak memory in GB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    result: dict[str, Any] = json.loads(text.splitlines()[-1])
    return {**result, "memory": usage.ru_maxrss / 1e6}


def light_commands() -> dict[str, float]:
    """Process time, user and system, of what must be instant: medians of nine, in milliseconds."""
    commands = {
        "bare interpreter": ["-c", "pass"],
        "ed-train --list-optimizers": ["-m", "ed_train", "--list-optimizers"],
        "ed-train with a wrong key": ["-m", "ed_train", "--lr=fast"],
    }
    return {name: statistics.median(process_time(c) for _ in range(9)) for name, c in commands.items()}


def process_time(arguments: list[str]) -> float:
    """Milliseconds of user and system time of one fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def markdown(rows: list[dict[str, Any]], work: str, light: dict[str, float]) -> str:
    """The results as Markdown, with what they were measured on."""
    import diffusers
    import torch
    import transformers

    lines = [
        f"Measured on {time.strftime('%Y-%m-%d')}: {_processor()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}, transformers "
        f"{transformers.__version__}; model {work}, 64 square photos at 256 px, batch 4, AdamW.",
        "",
        "| comparison | floor, s/step | trainer, s/step | trainer / floor, median (range) | peak memory / floor's | "
        "start to first step, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"**{row['ratio']:.3f}** ({row['ratios'][0]:.3f} to {row['ratios'][-1]:.3f})"
        times = f"{row['floor']:.3f} | {row['trainer']:.3f}"
        lines.append(f"| {row['case']} | {times} | {spread} | {row['memory']:.2f} | {row['first']:.1f} |")
    lines += ["", "| command | process time, ms |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in light.items()]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


if __name__ == "__main__":
    main()
