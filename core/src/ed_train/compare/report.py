"""Write the report of a comparison: an HTML file that needs nothing else, PNGs of its plots, the numbers as JSON."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ed_train import __version__
from ed_train.compare.canvas import DARK, LIGHT, SvgCanvas
from ed_train.compare.folder import DONE, Place
from ed_train.compare.pictures import SampleColumn, embedded, plots_of, sample_columns, sample_sheet
from ed_train.compare.plots import WIDTH, Plot, Style, draw_png, styles
from ed_train.compare.seeds import HEADINGS as SEED_HEADINGS
from ed_train.compare.seeds import group_cells, groups, groups_as_json, lead_of_seeds
from ed_train.compare.summary import HEADINGS, MISSING, Row, Summary, as_json, cells, number
from ed_train.config.describe import show
from ed_train.config.record import configuration_of
from ed_train.config.run import ComponentConfig, RunConfig
from ed_train.data.files import write_atomic
from ed_train.errors import EdTrainError

REPORT, RESULTS, SHEET = "report.html", "results.json", "samples.png"
PRECISIONS = {"bf16": "bfloat16 autocast", "fp16": "float16 autocast", "no": "float32"}
PAGE = {"light": "#f6f8fa", "dark": "#0d1117"}


def write_report(folder: Path, summary: Summary, places: Sequence[Place], run: RunConfig, stray: Sequence[str]) -> Path:
    """Write everything into the comparison's folder.

    Args:
        folder: of the comparison.
        summary: the outcome.
        places: where the runs lie, in the order of the summary's rows.
        run: what the runs share.
        stray: names of folders of earlier settings.

    Returns:
        The report.

    Raises:
        EdTrainError: the folder cannot be written to.
    """
    looks = styles([row.member.name for row in summary.rows])
    plots = plots_of(summary, looks)
    labels, columns = sample_columns(summary)
    page = "\n".join(_page(summary, places, run, stray, looks, plots, labels, columns))
    path = folder / REPORT
    try:
        for plot in plots:
            draw_png(plot).save(folder / f"{plot.name}.png")
        if columns:
            sample_sheet(labels, columns).save(folder / SHEET)
        content = {**as_json(summary), "seeds": groups_as_json(summary), "facts": facts(summary, run)}
        results = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomic(folder / RESULTS, results.encode())
        write_atomic(path, page.encode())
    except OSError as error:
        raise EdTrainError(f"the report cannot be written: {folder}: {error.strerror or error}") from error
    return path


def _page(
    summary: Summary, places: Sequence[Place], run: RunConfig, stray: Sequence[str], looks: Sequence[Style],
    plots: Sequence[Plot], labels: Sequence[str], columns: Sequence[SampleColumn],
) -> Iterator[str]:  # fmt: skip
    title = f"{run.train.project_name}: comparison of optimizers"
    yield f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<style>\n{_style(looks)}\n</style>\n</head>\n<body>\n<main>"
    yield f"<h1>{escape(title)}</h1>"
    yield f'<p class="facts">{escape(" · ".join(facts(summary, run)))}</p>'
    yield f'<p class="lead">{escape(_lead(summary))}</p>'
    yield from _summary_table(summary, looks)
    yield '<h2>Curves</h2>\n<p class="note">Point at a line or a label to see it alone.</p>\n<div class="plots">'
    yield from (f'<figure class="card">{_svg(plot)}</figure>' for plot in plots)
    yield "</div>"
    yield from _samples(labels, columns)
    yield from _configurations(summary, looks, places)
    yield from _shared(run, () if not _seeds(summary) else ("seed",))
    yield from _remarks(summary, stray)
    yield "</main>\n</body>\n</html>\n"


def _style(looks: Sequence[Style]) -> str:
    """The style sheet, with the colours of both themes and a rule for each run that fades the others."""
    variables = {
        theme: "; ".join(f"--{name}: {colour}" for name, colour in {**table, "page": PAGE[theme]}.items())
        for theme, table in (("light", LIGHT), ("dark", DARK))
    }
    rules = [f":root {{ color-scheme: light dark; {variables['light']} }}"]
    rules.append(f"@media (prefers-color-scheme: dark) {{ :root {{ {variables['dark']} }} }}")
    rules.append(Path(__file__).with_name("report.css").read_text("utf-8"))
    keys = [look.key for look in looks]
    rules += [f"main:has(.k{k}:hover) .k:not(.k{k}) {{ opacity: .13; }}" for k in keys]
    return "\n".join(rules)


def facts(summary: Summary, run: RunConfig) -> list[str]:
    """What was trained, with what, when."""
    record = next((row.result.record for row in summary.rows if row.result.record), {})
    train = run.train
    steps = max((row.result.loss.steps[-1] for row in summary.rows if row.result.loss), default=0)
    known = [
        f"{len(summary.rows)} runs of {steps} steps" if steps else f"{len(summary.rows)} runs",
        f"batch {train.batch_size}" + (f" x {train.grad_accum}" if train.grad_accum > 1 else ""),
        f"{train.resolution} px",
        _seeds(summary) or f"seed {train.seed}",
        f"model {run.model.location}",
        f"data {train.data_root}",
    ]
    if record:
        precision = PRECISIONS.get(str(record.get("precision")), "")
        threads = record.get("threads")
        known.append(f"{record.get('device')}, {threads} thread{'s' if threads != 1 else ''}, {precision}")
        known.append(f"torch {(record.get('libraries') or {}).get('torch')}")
    return [*known, f"ed-train {__version__}", time.strftime("%Y-%m-%d %H:%M")]


def _seeds(summary: Summary) -> str:
    found = dict.fromkeys(row.member.run.train.seed for row in summary.rows if row.member.seed_of)
    return f"seeds {', '.join(map(str, found))}" if found else ""


def _lead(summary: Summary) -> str:
    """The outcome in a sentence."""
    done = [row for row in summary.ranked if row.best and row.result.status == DONE]
    if not done or done[0].best is None:
        return "No run is finished yet." if summary.rows else ""
    value, step = done[0].best
    before = f"; before training it was {number(summary.start)}" if summary.start is not None else ""
    if over_seeds := lead_of_seeds(summary):
        return over_seeds + (f" Before training it was {number(summary.start)}." if before else "")
    return f"Lowest {summary.measure}: {number(value)} with {done[0].member.label} at step {step}{before}."


def _summary_table(summary: Summary, looks: Sequence[Style]) -> Iterator[str]:
    by_label = {row.member.label: look for row, look in zip(summary.rows, looks, strict=True)}
    yield '<h2>Outcome</h2>\n<div class="card"><table class="summary"><thead><tr>'
    yield "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS[:-1])
    yield f'<th class="words">{escape(HEADINGS[-1])}</th></tr></thead><tbody>'
    for rank, row in enumerate(summary.ranked):
        look = by_label[row.member.label]
        swatch = f'<span class="swatch" style="background: var(--{look.colour})"></span>'
        label, *numbers, verdict = cells(row)
        first = ' class="first"' if rank == 0 and row.best else ""
        yield f'<tr{first}><th class="k k{look.key}" scope="row">{swatch}{escape(label)}</th>'
        yield "".join(f"<td>{escape(text)}</td>" for text in numbers)
        bad = " bad" if row.result.status != DONE else ""
        yield f'<td class="words{bad}">{escape(verdict)}</td></tr>'
    yield "</tbody></table></div>"
    yield f'<p class="note">{escape(_legend(summary))}</p>'
    if rows := [group_cells(group) for group in groups(summary)]:
        yield '<h2>Over seeds</h2>\n<div class="card"><table class="summary"><thead><tr>'
        yield "".join(f"<th>{escape(heading)}</th>" for heading in SEED_HEADINGS) + "</tr></thead><tbody>"
        for label, *texts in rows:
            values = "".join(f"<td>{escape(text)}</td>" for text in texts)
            yield f'<tr><th scope="row">{escape(label)}</th>{values}</tr>'
        yield "</tbody></table></div>"


def _legend(summary: Summary) -> str:
    what = f"best, final: {summary.measure}"
    if summary.measured is None:
        what += ", smoothed: nothing is validated, and this loss is noisy and falls where pictures are memorized"
    return (
        f"{what}. per step: median seconds of an optimizer step; training: of all steps together; without samples, "
        "validation and checkpoints. state: the optimizers' own memory. lr at end: the step size that is really used, "
        "d times lr where the optimizer finds it itself."
    )


def _svg(plot: Plot) -> str:
    canvas = SvgCanvas(WIDTH, plot.height)
    plot.draw(canvas)
    return canvas.svg(plot.title)


def _samples(labels: Sequence[str], columns: Sequence[SampleColumn]) -> Iterator[str]:
    yield "<h2>Samples</h2>"
    if not columns:
        yield '<p class="note">None were drawn: sample_steps is 0, or no run is finished.</p>'
        return
    yield '<div class="card"><table class="samples"'
    yield f' style="--columns: {len(columns)}"><thead><tr><th></th>'
    yield "".join(f"<th>{escape(column.title)}</th>" for column in columns) + "</tr></thead><tbody>"
    for index, label in enumerate(labels):
        yield f'<tr><th scope="row">{escape(label)}</th>'
        yield "".join(_tile(column.pictures[index], f"{label}, {column.title}") for column in columns) + "</tr>"
    yield "</tbody></table></div>"


def _tile(picture: Path | None, words: str) -> str:
    try:
        return f'<td><img src="{embedded(picture)}" alt="{escape(words)}"></td>' if picture else _NO_TILE
    except OSError:
        return _NO_TILE


_NO_TILE = f'<td class="none">{MISSING}</td>'


def _configurations(summary: Summary, looks: Sequence[Style], places: Sequence[Place]) -> Iterator[str]:
    yield '<h2>Configuration of each</h2>\n<div class="card">'
    for row, look, place in zip(summary.rows, looks, places, strict=True):
        yield f'<details><summary class="k k{look.key}">{escape(row.member.label)}</summary>'
        for name, config in row.member.run.components.items():
            yield from _component(name, config)
        yield from (f'<p class="note">note: {escape(note)}</p>' for note in row.member.run.notes)
        command = escape(shlex.join(["ed-train", "--config", str(place.config), "--logdir", "logs"]))
        yield f'<p class="note">to repeat it: <code>{command}</code></p></details>'
    yield "</div>"


def _component(name: str, config: ComponentConfig) -> Iterator[str]:
    origin = f"{config.optimizer.spec.name}, {config.optimizer.origin}"
    rows: list[tuple[str, Any, str]] = [
        (key, value, config.sources[key]) for key, value in vars(config.options).items()
    ]
    rows.append(("lr_scheduler", config.lr_scheduler, config.sources["lr_scheduler"]))
    yield f"<p>{escape(name)}: {escape(origin)}</p>"
    yield from _table(rows)


def _shared(run: RunConfig, varied: Collection[str]) -> Iterator[str]:
    """The settings of train.json that all runs have; those that somebody set come first."""
    settings = configuration_of(run)["train"].items()
    rows = [(key, value, run.sources.get(key, "default")) for key, value in settings if key not in varied]
    given = [row for row in rows if row[2] != "default"]
    yield '<h2>Settings of all runs</h2>\n<div class="card">'
    yield from _table(given)
    yield f"<details><summary>the other {len(rows) - len(given)} have their defaults</summary>"
    yield from _table(row for row in rows if row[2] == "default")
    yield "</details></div>"


def _table(rows: Iterable[tuple[str, Any, str]]) -> Iterator[str]:
    yield '<table class="settings"><tbody>'
    for key, value, source in rows:
        yield (
            f"<tr><th><code>{escape(key)}</code></th><td><code>{escape(show(value))}</code></td>"
            f'<td class="note">{escape(source)}</td></tr>'
        )
    yield "</tbody></table>"


def _remarks(summary: Summary, stray: Sequence[str]) -> Iterator[str]:
    failed: list[Row] = [row for row in summary.rows if row.result.reason]
    if not failed and not stray:
        return
    yield '<h2>Remarks</h2>\n<div class="card">'
    yield from (f"<p><strong>{escape(row.member.label)}</strong>: {escape(row.result.reason)}</p>" for row in failed)
    if stray:
        kept = ", ".join(stray)
        yield f'<p class="note">Runs with other settings lie in this folder, too, and are not shown: {escape(kept)}</p>'
    yield "</div>"
