#!/usr/bin/env python
"""Time of an optimizer step: each optimizer against its library's class and torch's fused AdamW, in turn.

    python benchmarks/optimizers.py            # every optimizer, the small model's 882 tensors, five rounds
    python benchmarks/optimizers.py --quick    # those with a fast step of ours, the tiny model's tensors, two rounds

Every figure comes from fresh processes, one after another within each round; machines drift, so the ratios are those
within a round. The gradients are noise whose sign changes with each step, so that no estimate of a step size grows.
Writes optimizers.json and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
FLOOR = "torch's fused AdamW"


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        label: its row of the table.
        name: for `create_optimizer`; empty for torch's own fused AdamW.
        options: for `create_optimizer`.
        against: the label of the row that is its yardstick; empty if there is none.
    """

    label: str
    name: str
    options: dict[str, Any]
    against: str = ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer optimizers, tensors and rounds, in under a minute")
    parser.add_argument("--rounds", type=int, help="rounds of all optimizers; 5, or 2 with --quick")
    parser.add_argument("--steps", type=int, default=10, help="timed steps in each process, after two that are not")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="*", help="names of optimizers")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where results go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Contender(**json.loads(options.child)), json.load(sys.stdin), options)))
        return
    rounds = options.rounds or (2 if options.quick else 5)
    shapes = shapes_of("tiny" if options.quick else "small")
    chosen = contenders(options)
    found: dict[str, list[dict[str, Any]]] = {contender.label: [] for contender in chosen}
    for number in range(rounds):
        for contender in chosen:
            result = run(contender, shapes, options)
            found[contender.label].append(result)
            print(f"round {number + 1}: {contender.label}: {result['ms']:.1f} ms", flush=True)
    report = markdown(chosen, found, shapes, options)
    print("\n" + report)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "optimizers.json").write_text(json.dumps(found, indent=1))
    (options.folder / "optimizers.md").write_text(report)


def contenders(options: argparse.Namespace) -> list[Contender]:
    """The fused AdamW and all installed optimizers that run on the device, ours beside its library's if it has both."""
    from ed_train.api import installed_plugins
    from ed_train.specs import option_names

    chosen = [Contender(FLOOR, "", {})]
    for registered in installed_plugins():
        spec, name = registered.spec, registered.spec.name
        both = "implementation" in option_names(spec.config_type)
        fits = not spec.devices or options.device in spec.devices
        wanted = name in options.only if options.only else both or name == "adamw" or not options.quick
        if not fits or not wanted:
            continue
        if both:
            library = f"{name}, {spec.library}'s"
            chosen += [
                Contender(library, name, {"implementation": "reference"}),
                Contender(name, name, {"implementation": "fast"}, against=library),
            ]
        else:
            chosen.append(Contender(name, name, {}, against="" if spec.library else FLOOR))
    return chosen


def shapes_of(size: str) -> list[list[int]]:
    """Shapes of the UNet's and the text encoder's parameters."""
    import torch
    from make_tiny_sd import SIZES, make_text_encoder, make_unet

    with torch.device("meta"):
        modules = [make_unet(SIZES[size]), make_text_encoder(SIZES[size])]
    return [list(parameter.shape) for module in modules for parameter in module.parameters()]


def run(contender: Contender, shapes: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Time a contender in a fresh process: median milliseconds of a step, bytes of state per parameter."""
    flags = [f"--{name}={getattr(options, name)}" for name in ("steps", "threads", "device")]
    command = [sys.executable, __file__, f"--child={json.dumps(asdict(contender))}", *flags]
    done = subprocess.run(command, input=json.dumps(shapes), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{contender.label} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(contender: Contender, shapes: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Take steps, in this process."""
    import torch
    from ed_train import create_optimizer
    from ed_train.train.memory import held_bytes

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    parameters = [torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    if contender.name:
        optimizer = create_optimizer(contender.name, parameters, **contender.options)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    times = []
    for _ in range(2 + options.steps):
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.neg_()
        finish(device)
        started = time.perf_counter()
        optimizer.step()
        finish(device)
        times.append(1000 * (time.perf_counter() - started))
    elements = sum(parameter.numel() for parameter in parameters)
    return {"ms": statistics.median(times[2:]), "bytes": held_bytes(optimizer) / elements}


def finish(device: Any) -> None:
    """Wait for a device to have computed all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def markdown(
    chosen: Sequence[Contender], found: dict[str, list[dict[str, Any]]], shapes: Any, options: argparse.Namespace
) -> str:
    """The results as Markdown, with what they were measured on."""
    import math

    import torch

    elements = sum(math.prod(shape) for shape in shapes) / 1e6
    lines = [
        f"Measured on {time.strftime('%Y-%m-%d')}: {device_name(options.device)}, {options.threads} threads of "
        f"{os.cpu_count()}, Python {platform.python_version()}, torch {torch.__version__}; {elements:.1f} M float32 "
        f"parameters in {len(shapes)} tensors, medians of {len(found[FLOOR])} rounds (range).",
        "",
        "| optimizer | ms/step | against | ratio | / fused AdamW | state, bytes/parameter |",
        "|---|---|---|---|---|---|",
    ]
    for contender in chosen:
        results = found[contender.label]
        ms = spread([result["ms"] for result in results], 1)
        against = contender.against or "-"
        ratio = f"**{ratios(results, found[contender.against])}**" if contender.against else "-"
        cells = [contender.label, ms, against, ratio, ratios(results, found[FLOOR]), f"{results[0]['bytes']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ratios(results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    """Ratios within the rounds."""
    return spread([a["ms"] / b["ms"] for a, b in zip(results, others, strict=True)], 2)


def spread(values: Sequence[float], digits: int) -> str:
    """Median and range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def device_name(device: str) -> str:
    """What the steps ran on."""
    import torch
    from report import processor

    return torch.cuda.get_device_name() if device == "cuda" else processor()


if __name__ == "__main__":
    main()
