"""The results as Markdown: what was measured, on what, and which targets are met."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rows import ROWS, Row

PACKAGES = ("torch", "diffusers", "transformers", "accelerate")
MEMORY, FIRST_STEP, LIST_MS = 1.05, 1.15, 100.0
"""The targets that do not depend on the row: against the floor's memory, its start, and milliseconds."""


def versions() -> str:
    """Date, processor and versions, as a sentence."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Measured on {time.strftime('%Y-%m-%d')}: {processor()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {packages}."
    )


def markdown(found: dict[str, Any]) -> str:
    """All tables."""
    parts = (_time_lines(found), _start_lines(found), _light_lines(found), _target_lines(found))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def write_docs(page: Path, text: str, command: str = "make bench") -> None:
    """Put the tables between the two marks of a page that name the command which measured.

    Raises:
        SystemExit: the page has no such marks.
    """
    begin, end = f"<!-- measured by {command} -->", f"<!-- end of what {command} measured -->"
    before, found, rest = page.read_text("utf-8").partition(begin)
    _, found_too, after = rest.partition(end)
    if not (found and found_too):
        raise SystemExit(f"{page}: expected {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", "utf-8")


def ratios(row: dict[str, Any], program: str, base: str) -> list[float]:
    """The ratio of every turn to the other program's neighbouring turn, of all rounds."""
    return sorted(
        mine / other
        for results in row["rounds"]
        for mine, other in zip(results[program]["turns"], results[base]["turns"], strict=True)
    )


def memory(row: dict[str, Any], program: str, base: str) -> float:
    """Peak memory of a program against another one's, the median of the rounds."""
    return statistics.median(float(results[program]["memory"] / results[base]["memory"]) for results in row["rounds"])


def first(row: dict[str, Any], program: str) -> float:
    """Seconds from the start to the first step, the median of the rounds."""
    return statistics.median(float(results[program]["first"]) for results in row["rounds"])


def _row(key: str) -> Row:
    return next(row for row in ROWS if row.key == key)


def _time_lines(found: dict[str, Any]) -> Iterator[str]:
    turns = sum(len(results["floor fp32"]["turns"]) for results in found["rows"][0]["rounds"])
    yield (
        f"{found['versions']} Ratios are medians of {turns} turns in {found['rounds']} rounds, with quartiles. "
        "*Default* is the trainer without any setting of precision: bfloat16 autocast where the processor has it."
    )
    yield ""
    yield (
        "| work | floor, s/step | trainer / floor, float32 | trainer / floor, bfloat16 | default / float32 floor | "
        "bfloat16 floor / float32 floor |"
    )
    yield "|---|---|---|---|---|---|"
    for row in found["rows"]:
        seconds = statistics.median(t for results in row["rounds"] for t in results["floor fp32"]["turns"])
        cells = [
            _spread(ratios(row, "trainer fp32", "floor fp32"), bold=True),
            _spread(ratios(row, "trainer default", "floor bf16")),
            _spread(ratios(row, "trainer default", "floor fp32"), bold=True),
            _spread(ratios(row, "floor bf16", "floor fp32")),
        ]
        yield f"| {_row(row['key']).title} | {seconds:.3f} | {' | '.join(cells)} |"


def _start_lines(found: dict[str, Any]) -> Iterator[str]:
    yield (
        "| work | floor's peak memory, GB | trainer's / floor's, float32 | default / float32 floor's | first step, s: "
        "floor | trainer, empty caches | trainer, full caches |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        gigabytes = statistics.median(results["floor fp32"]["memory"] for results in row["rounds"])
        shares = [memory(row, "trainer fp32", "floor fp32"), memory(row, "trainer default", "floor fp32")]
        seconds = [first(row, "floor fp32"), row["cold"], first(row, "trainer fp32")]
        cells = [f"{gigabytes:.2f}", *(f"{share:.2f}" for share in shares), *(f"{second:.1f}" for second in seconds)]
        yield f"| {_row(row['key']).title} | {' | '.join(cells)} |"


def _light_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "| command | process time, ms: median (least to most) |"
    yield "|---|---|"
    for name, times in found["light"].items():
        yield f"| {name} | {statistics.median(times):.0f} ({times[0]:.0f} to {times[-1]:.0f}) |"


def _target_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "| target | measured | |"
    yield "|---|---|---|"
    for row in found["rows"]:
        title = _row(row["key"]).title
        for target, most, values in _targets(row):
            middle = statistics.median(values)
            yield f"| {title}: {target}, at most {most} | {middle:.3f} | {_verdict(middle, most, values)} |"
    times = found["light"]["ed-train --list-optimizers"]
    middle = statistics.median(times)
    yield f"| `--list-optimizers`, at most {LIST_MS:.0f} ms | {middle:.0f} | {_verdict(middle, LIST_MS, times)} |"


def _targets(row: dict[str, Any]) -> Iterator[tuple[str, float, list[float]]]:
    """The targets of a row: what, the most, and what was measured."""
    kind = _row(row["key"])
    yield "trainer / floor, float32", kind.most, ratios(row, "trainer fp32", "floor fp32")
    yield "trainer / floor, bfloat16", kind.most, ratios(row, "trainer default", "floor bf16")
    yield "default / float32 floor", kind.most_by_default, ratios(row, "trainer default", "floor fp32")
    yield "peak memory / floor's", MEMORY, [memory(row, "trainer fp32", "floor fp32")]
    yield "first step with empty caches / floor's", FIRST_STEP, [row["cold"] / first(row, "floor fp32")]


def _verdict(value: float, most: float, values: Sequence[float]) -> str:
    """Whether a target is met, and whether the spread of what was measured leaves any doubt of that."""
    doubt = ""
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4)
        doubt = ", within the spread" if low <= most < high or low < most <= high else ""
    return ("met" if value <= most else "**missed**") + doubt


def _spread(values: Sequence[float], *, bold: bool = False) -> str:
    middle = f"{statistics.median(values):.3f}"
    shown = f"**{middle}**" if bold else middle
    if len(values) == 1:
        return shown
    low, _, high = statistics.quantiles(values, n=4)
    return f"{shown} ({low:.3f} to {high:.3f})"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    wide = next((f for f in ("amx_bf16", "avx512_bf16") if f in found.get("flags", "")), "no bfloat16 instructions")
    return f"{found.get('model name', 'unknown processor')} ({wide})"
