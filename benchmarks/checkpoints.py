#!/usr/bin/env python
"""Time to save and load, against `save_pretrained` and `torch.save`, and how long training waits for a save.

    python benchmarks/checkpoints.py            # the small model
    python benchmarks/checkpoints.py --quick    # the tiny model

Both write the whole pipeline and both optimizers' state, in turn, and both end with the data on the disk (fsync), so
that the same is measured. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where models and results go")
    options = parser.parse_args()
    session = trained_session(options.folder, "tiny" if options.quick else "small")
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for name, seconds in {**plain(session, options.folder), **ours(session, number)}.items():
            found.setdefault(name, []).append(seconds)
    print(f"\n{'tiny' if options.quick else 'small'} model, AdamW, medians of {options.rounds} rounds (range):\n")
    print("| what | value |\n|---|---|")
    for name, values in found.items():
        unit, digits = ("GB", 3) if "size" in name else ("s", 2)
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"| {name} | {middle:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f}) |")
    session.close()


def trained_session(folder: Path, size: str, **more: object) -> Any:
    """A session after two steps, so that the optimizers have their state; `more` settings as flags."""
    from ed_train.config.load import load_config
    from ed_train.registry import load_registry
    from ed_train.train.setup import start
    from ed_train.train.step import train_step
    from rows import Row, make_assets

    assets = make_assets(folder, Row(size, size, size=size))
    flags = {
        "resume_ckpt": assets.model, "data_root": assets.photos, "resolution": 256, "batch_size": 4, "max_epochs": 100,
        "optimizer_config": assets.optimizer, "logdir": folder / "logs", "sample_steps": 0,
        "disable_amp": "true", "save_optimizer": "true", **more,
    }  # fmt: skip
    session, _ = start(load_config({key: str(value) for key, value in flags.items()}, load_registry()))
    windows = session.windows()
    for _ in range(2):
        train_step(session, next(windows))
        session.count(1)
    return session


def plain(session: Any, folder: Path) -> dict[str, float]:
    """What a script of one's own would do."""
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    target = folder / "plain"
    shutil.rmtree(target, ignore_errors=True)
    model = session.model
    pipeline = StableDiffusionPipeline(
        model.load_vae(), session.text_encoder, model.load_tokenizer(), session.unet,
        DDPMScheduler.from_config(model.scheduler_config()), None, None, requires_safety_checker=False,
    )  # fmt: skip

    def save() -> None:
        pipeline.save_pretrained(target)
        for component in session.components:
            torch.save(component.optimizer.state_dict(), target / f"{component.name}.pt")
        for path in target.rglob("*"):
            if path.is_file():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())

    def load() -> None:
        StableDiffusionPipeline.from_pretrained(target, safety_checker=None)
        for component in session.components:
            state = torch.load(target / f"{component.name}.pt", weights_only=True)
            component.optimizer.load_state_dict(state)

    return {
        "plain: save": timed(save),
        "plain: load": timed(load),
        "plain: size": size_of(target),
    }


def ours(session: Any, number: int) -> dict[str, float]:
    """The trainer's checkpoint: what training waits for, until it is whole, and what a resume needs."""
    from ed_train.config.resume import find_named
    from ed_train.models.load import SdModel
    from ed_train.models.reference import ModelReference
    from ed_train.train.optimizer_state import restore_optimizer

    session.step += 1
    started = time.perf_counter()
    session.save()
    waited = time.perf_counter() - started
    session.output.writer.wait()
    whole = time.perf_counter() - started
    checkpoint = session.output.saved[-1]

    def load() -> None:
        point, message = find_named(str(checkpoint), Path())
        assert point, message
        model = SdModel(ModelReference("folder", str(checkpoint)))
        for part in (model.load_unet, model.load_text_encoder, model.load_vae, model.load_tokenizer):
            part()
        for component in session.components:
            restore_optimizer(component, checkpoint, point.manifest, changed=False)

    found = {
        "ed-train: training waits": waited,
        "ed-train: save": whole,
        "ed-train: load, all checksums compared": timed(load),
        "ed-train: size": size_of(checkpoint),
    }
    shutil.rmtree(checkpoint)
    session.output.saved.pop()
    return found


def timed(action: Callable[[], None]) -> float:
    """Seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def size_of(folder: Path) -> float:
    """GB of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


if __name__ == "__main__":
    main()
