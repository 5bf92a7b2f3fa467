#!/usr/bin/env python
"""What each setting that saves memory saves, and what it costs in time.

    python benchmarks/memory.py            # the small model
    python benchmarks/memory.py --quick    # the tiny model

Every setting trains some steps in a process of its own; they take turns, and times are compared within a round. Weights
and optimizer state are the bytes of the tensors; gradients those that are alive at once when an optimizer steps; the
peak is that of the whole process while it trains, activations included. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
ADAMW, FP32 = {"optimizer": "adamw"}, {"disable_amp": "true"}
AUTOCAST = {"mixed_precision": "bf16"}
IN_BACKWARD = {"optimizer_in_backward": "true"}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "adamw, float32": (ADAMW, FP32),
    "optimizer_in_backward": (ADAMW, {**FP32, **IN_BACKWARD}),
    "gradient_checkpointing": (ADAMW, {**FP32, "gradient_checkpointing": "true"}),
    "adamw8bit": ({"optimizer": "adamw8bit"}, FP32),
    "lion": ({"optimizer": "lion"}, FP32),
    "prodigy": ({"optimizer": "prodigy"}, FP32),
    "prodigy, slice_p 11": ({"optimizer": "prodigy", "slice_p": 11}, FP32),
    "adamw, bfloat16 autocast": (ADAMW, AUTOCAST),
    "weights_dtype bf16": (ADAMW, {**AUTOCAST, "weights_dtype": "bf16"}),
    "weights_dtype bf16, optimizer_in_backward": (ADAMW, {**AUTOCAST, **IN_BACKWARD, "weights_dtype": "bf16"}),
}
"""Optimizer section and train.json keys; the first is what the others are compared with."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps in each process; the first is not timed")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where models and results go")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only, options)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for number in range(options.rounds):
        for name in SETTINGS:
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            words = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            result = subprocess.run(words, capture_output=True, text=True, check=True)
            found[name].append(json.loads(result.stdout.splitlines()[-1]))
    print(table(found))


def measured(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Bytes, and seconds per step, of a run with one of the settings."""
    from ed_train.train.memory import held_bytes
    from ed_train.train.step import train_step

    base, settings = SETTINGS[name]
    session = new_session(base, settings, options)
    parameters = [p for component in session.components for p in component.parameters]
    alive: list[int] = []
    for component in session.components:
        component.optimizer.register_step_pre_hook(
            lambda *_: alive.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))
        )
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is none of training's
    windows, seconds = session.windows(), []
    for _ in range(options.steps):
        window = next(windows)
        started = time.perf_counter()
        train_step(session, window)
        seconds.append(time.perf_counter() - started)
        session.count(len(window))
    windows.close()
    result = {
        "weights": sum(p.nbytes for component in session.components for p in component.module.parameters()),
        "gradients": max(alive),
        "state": sum(held_bytes(component.optimizer) for component in session.components),
        "peak": peak(),
        "seconds": statistics.median(seconds[1:]),
        "d": session.components[0].optimizer.param_groups[0].get("d", 0.0),
    }
    session.close()
    return result


def new_session(base: Mapping[str, Any], settings: Mapping[str, str], options: argparse.Namespace) -> Any:
    """A session that is ready for its first step."""
    from ed_train.config.load import load_config
    from ed_train.registry import load_registry
    from ed_train.train.setup import start
    from rows import Row, make_assets

    size = "tiny" if options.quick else "small"
    assets = make_assets(options.folder, Row(size, size, size=size))
    optimizer = options.folder / "optimizer-memory.json"
    optimizer.write_text(json.dumps({"base": base}))
    flags = {
        "resume_ckpt": assets.model, "data_root": assets.photos, "resolution": 256, "batch_size": 4, "max_epochs": 100,
        "optimizer_config": optimizer, "logdir": options.folder / "logs", "sample_steps": 0, **settings,
    }  # fmt: skip
    return start(load_config({key: str(value) for key, value in flags.items()}, load_registry()))[0]


def peak() -> int:
    """The most memory that the process had since it was last reset, in bytes."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(found: Mapping[str, list[dict[str, float]]]) -> str:
    """Memory in MB, and times as ratios to the first setting's of the same round."""
    columns = ("weights", "gradients", "state", "peak")
    lines = [f"| setting | {' | '.join(columns)} | time of a step (range) |", "|---" * (len(columns) + 2) + "|"]
    first = next(iter(found.values()))
    for name, rounds in found.items():
        cells = [f"{statistics.median(r[column] for r in rounds) / 1e6:,.0f}" for column in columns]
        ratios = [own["seconds"] / plain["seconds"] for own, plain in zip(rounds, first, strict=True)]
        time_ = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {' | '.join(cells)} | {time_} |")
    estimates = [f"{name}: {rounds[0]['d']:.4g}" for name, rounds in found.items() if rounds[0]["d"]]
    return "\n".join([*lines, "", f"d of the UNet after the steps: {', '.join(estimates)}"])


if __name__ == "__main__":
    main()
