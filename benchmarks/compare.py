"""Compare every optimizer on the demo's task with ed-compare, and write the table of docs/benchmarks.md.

    make compare                              # report in .work/compare/report.html
    make compare ARGS="--write-docs"          # and the table and pictures of the docs
    make compare ARGS="--optimizers lion"     # further flags go to ed-compare

Each optimizer teaches the demo's model what a robot is, and is judged by the loss of robots on grounds where it has
seen none, with noise and timesteps that are the same in every validation.
Interrupted, it goes on where it stopped when it is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.demo import MODEL, write_validation
from demo.robot import write_pictures
from ed_train.api import installed_plugins
from PIL import Image
from report import versions, write_docs

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WORK = ROOT / ".work" / "compare"
DEMO = ROOT / "examples" / "demo"
FLAGS = ("--max_steps", "200", "--sample_steps", "100000", "--log_step", "5")
"""Samples are drawn before and after alone."""
HEADINGS = (
    "optimizer", "lr", "loss: lowest", "at step", "at the end", "against the start", "ms a step", "state, MB",
    "lr at the end",
)  # fmt: skip
MISSING = "–"


def table(results: Mapping[str, Any]) -> str:
    """How it was made, and a row for each run."""
    runs = sorted(results["runs"], key=lambda run: (run["status"] != "done", run["best"] is None, run["best"] or 0))
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, runs)]
    before = f" Loss before training: {results['start']:.4f}." if results["start"] is not None else ""
    made = f"{versions()} {'; '.join(_made(results['facts']))}.{before}"
    return "\n".join([made, "", *("| " + " | ".join(row) + " |" for row in rows), ""])


def _cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    if run["status"] != "done":
        return (run["label"], f"{run['lr']:g}", run["reason"] or run["status"], *[MISSING] * 6)
    change = run["change"]
    return (
        run["label"],
        f"{run['lr']:g}",
        _number(run["best"]),
        str(run["best_step"]),
        _number(run["final"]),
        MISSING if change is None else f"{change:+.1%}".replace("-", "−"),
        MISSING if run["step_seconds"] is None else f"{1000 * run['step_seconds']:.0f}",
        MISSING if run["optimizer_state_mb"] is None else f"{run['optimizer_state_mb']:.1f}",
        MISSING if run["effective_lr"] is None else f"{run['effective_lr']:.1e}",
    )


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _made(facts: Sequence[str]) -> Iterator[str]:
    """What was trained: the facts that no path of this machine is in."""
    return (fact for fact in facts if not fact.startswith(("model ", "data ", "torch ", "ed-train ", "20")))


def task() -> list[str | Path]:
    """Make the demo's pictures, once; returns the flags that train its model on them."""
    made = WORK / "task"
    if not made.exists():  # made anew, the pictures would count as other ones
        half_made = WORK / "half made"
        write_pictures(half_made)
        half_made.rename(made)
    inputs: list[str | Path] = ["--resume_ckpt", MODEL, "--data_root", made / "training"]
    inputs += ["--validation_config", write_validation(made)]
    return ["--config", DEMO / "train.json", *inputs, "--logdir", WORK / "logs", *FLAGS]


def compare(flags: Sequence[str]) -> int:
    """Run ed-compare as a user would; returns its exit status."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # the model is too small for threads to share
    names = ",".join(optimizer.spec.name for optimizer in installed_plugins())  # also what cannot run here: it says so
    command = [sys.executable, "-m", "ed_train.compare", "--folder", WORK, *task(), "--optimizers", names, *flags]
    return subprocess.run(list(map(str, command)), check=False, env=environment).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description="compare all optimizers on the demo; further flags go to ed-compare")
    parser.add_argument("--write-docs", action="store_true", help="write the table into docs/benchmarks.md")
    arguments, flags = parser.parse_known_args()
    status = compare(flags)
    if arguments.write_docs and status == 0:
        results = json.loads((WORK / "results.json").read_text("utf-8"))
        write_docs(DOCS / "benchmarks.md", table(results), "make compare")
        shutil.copy(WORK / "validation_loss_steps.png", DOCS / "optimizers.png")
        with Image.open(WORK / "samples.png") as samples:
            samples.convert("RGB").save(DOCS / "optimizers.jpg", quality=85)
    sys.exit(status)


if __name__ == "__main__":
    main()
