#!/usr/bin/env python
"""Compare ed-train's training loop with a hand-written one, the floor, in every kind of work that has a target.

    python benchmarks/run.py                          # all rows, two rounds
    python benchmarks/run.py --quick                  # one row, one round, in under 3 minutes
    python benchmarks/run.py --rows both,small --rounds 5
    python benchmarks/run.py --write-docs             # and put the tables into docs/benchmarks.md
    python benchmarks/run.py --profile --rows both    # where the time of a step goes

Of each row, floor and trainer run in float32 and in bfloat16 autocast, in four fresh processes that take turns of a
few steps: a ratio compares turns that follow each other. Writes .work/bench/results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from report import markdown, versions, write_docs  # noqa: E402
from rows import ROWS, Row, make_assets, trainer_flags  # noqa: E402
from turns import Program, alone, in_turns  # noqa: E402

WARM_UP = 2


def main() -> None:
    """Run the comparisons and print them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind, stopped
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in ROWS if row.key in options.rows]
    if options.profile:
        from phases import profile_rows

        print(profile_rows(chosen, options.folder))
        return
    from light import light_commands

    found = {
        "versions": versions(),
        "rounds": options.rounds,
        "rows": [measure(row, options) for row in chosen],
        "light": light_commands(),
    }
    (options.folder / "results.json").write_text(json.dumps(found, indent=1))
    text = markdown(found)
    (options.folder / "results.md").write_text(text)
    print("\n" + text)
    if options.write_docs:
        write_docs(HERE.parent / "docs" / "benchmarks.md", text)


def arguments() -> argparse.Namespace:
    """The command line, with defaults that depend on one another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = [row.key for row in ROWS]
    parser.add_argument("--quick", action="store_true", help="one row and one round")
    parser.add_argument("--rows", type=lambda text: text.split(","), help=f"of {', '.join(keys)}")
    parser.add_argument("--rounds", type=int, help="fresh processes of each kind")
    parser.add_argument("--turns", type=int, default=6, help="turns of each process")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="where models and results go")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--profile", action="store_true", help="show where the time of a step goes, instead")
    options = parser.parse_args()
    options.rows = options.rows or (["both"] if options.quick else keys)
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.folder = options.folder.resolve()
    if unknown := set(options.rows) - set(keys):
        parser.error(f"--rows: unknown {', '.join(sorted(unknown))}; known are {', '.join(keys)}")
    return options


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of a row; before them a start with empty caches, which fills them."""
    folder, assets = options.folder, make_assets(options.folder, row)
    steps = WARM_UP + options.turns * options.steps

    def trainer(precision: str, steps: int) -> list[str]:
        return [str(HERE / "trainer.py"), *trainer_flags(row, assets, folder, precision, steps)]

    def floor(precision: str) -> list[str]:
        files = (assets.model, assets.photos, assets.sizes)
        return [str(HERE / "floor.py"), row.key, *map(str, files), precision, str(steps)]

    shutil.rmtree(folder / "cache", ignore_errors=True)
    cold = alone(trainer("fp32", 1))["first"]
    alone(trainer("default", 1))  # what depends on the precision is cached now, too
    commands = {
        "floor fp32": floor("fp32"),
        "trainer fp32": trainer("fp32", steps),
        "floor bf16": floor("bf16"),
        "trainer default": trainer("default", steps),
    }
    rounds = []
    for number in range(options.rounds):
        programs = {name: Program(command, options.steps, WARM_UP) for name, command in commands.items()}
        rounds.append(in_turns(programs))
        means = {name: sum(result["turns"]) / len(result["turns"]) for name, result in rounds[-1].items()}
        shown = ", ".join(f"{name} {mean:.3f} s" for name, mean in means.items())
        print(f"{row.key}, round {number + 1}: {shown}", flush=True)
    shutil.rmtree(folder / "logs", ignore_errors=True)
    return {"key": row.key, "cold": cold, "rounds": rounds}


if __name__ == "__main__":
    main()
