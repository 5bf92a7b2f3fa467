#!/usr/bin/env python
"""What validation costs in steps, and single files in saves: ratios within each round.

    python benchmarks/extras.py            # the small model
    python benchmarks/extras.py --quick    # the tiny model

Each round takes four steps, a validation, a save, a save with a single file in half precision, and one in full, in
turn. Steps and validation have batches of 4 pictures; every save is waited for until it is whole. Prints a Markdown
table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints import trained_session

STEPS = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where models and results go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    validation = options.folder / "validation.json"
    validation.write_text(json.dumps({"val_split_proportion": 0.25, "batch_size": 4}))
    size = "tiny" if options.quick else "small"
    session = trained_session(options.folder, size, validation_config=validation.absolute())
    rounds = [measured(session) for _ in range(options.rounds + 1)][1:]  # the first one warms up
    session.close()
    print(f"\n{size} model, AdamW, medians of {options.rounds} rounds (range):\n")
    print("| what | ratio |\n|---|---|")
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


def measured(session: Any) -> dict[str, float]:
    """The ratios of one round."""
    from ed_train.train.step import train_step

    started = time.perf_counter()
    windows = session.windows()
    for _ in range(STEPS):
        train_step(session, next(windows))
        session.step += 1
    windows.close()
    step = (time.perf_counter() - started) / STEPS
    started = time.perf_counter()
    session.validator.validate(session)
    batches = len(session.validator.sets[0].scanned.items) / 4
    evaluation = (time.perf_counter() - started) / batches
    plain, half, full = (saved(session, **kind) for kind in ({}, {"file": True}, {"file": True, "full": True}))
    return {
        "validation of 4 pictures / step of 4 pictures": evaluation / step,
        "save with a single file in half precision / save": half / plain,
        "save with a single file in full precision / save": full / plain,
        "save / step of 4 pictures": plain / step,
    }


def saved(session: Any, *, file: bool = False, full: bool = False) -> float:
    """The seconds until a checkpoint is whole, which is removed again."""
    session.run = replace(
        session.run, train=replace(session.run.train, save_single_file=file, save_full_precision=full)
    )
    session.step += 1
    started = time.perf_counter()
    session.save()
    session.output.writer.wait()
    seconds = time.perf_counter() - started
    checkpoint = session.output.saved.pop()
    shutil.rmtree(checkpoint)
    for single in checkpoint.parent.glob(f"{checkpoint.name}.*"):
        single.unlink()
    return seconds


if __name__ == "__main__":
    main()
