"""Which plots a comparison has, and its samples side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ed_train.compare.collect import Curve, Result
from ed_train.compare.plots import Bar, BarPlot, Plot, Series, Style, line_plot
from ed_train.compare.summary import Row, Summary, duration, megabytes
from ed_train.config.run import UNET

LARGEST_SAMPLE = 384
"""Pixels of a sample's longer side in the report; the runs' folders have them as they were drawn."""
MINUTES, HOURS = 300, 3 * 3600


def plots_of(summary: Summary, looks: Sequence[Style]) -> list[Plot]:
    """Every plot that there is something for.

    Args:
        summary: with its rows in the order of the members.
        looks: of the members, in the same order.
    """
    rows = list(zip(summary.rows, looks, strict=True))
    unit, divisor = _time_unit(summary.rows)
    measure = summary.measure
    plots: list[Plot | None] = []
    if summary.measured is not None:
        plots += [
            _lines("validation_loss_steps", f"{measure} against steps", rows, lambda row: row.curve, y=measure),
            _lines(
                "validation_loss_time", f"{measure} against training time", rows, lambda row: row.curve, y=measure,
                x=f"training time, {unit}", divisor=divisor,
            ),
        ]  # fmt: skip
    plots.append(
        _lines("training_loss", "Training loss, smoothed", rows, lambda row: row.result.loss.smoothed(), y="loss")
    )
    plots += _lr_plots(rows)
    plots += [_grid_plot(rows, measure), *_bars(rows)]
    return [plot for plot in plots if plot]


def _lines(
    name: str, title: str, rows: Sequence[tuple[Row, Style]], curve: Callable[[Row], Curve], *, y: str,
    x: str = "optimizer steps", divisor: float = 0, log_y: bool = False,
) -> Plot | None:  # fmt: skip
    series = []
    for row, style in rows:
        c = curve(row)
        xs = [seconds / divisor for seconds in c.seconds] if divisor else c.steps
        series.append(Series(row.member.label, style, list(zip(xs, c.values, strict=True))))
    return line_plot(name, title[:1].upper() + title[1:], series, x=x, y=y, log_y=log_y, cut=not log_y)


def _lr_plots(rows: Sequence[tuple[Row, Style]]) -> Iterator[Plot | None]:
    """The step sizes of each component; one plot where those of the text encoder are the UNet's."""
    names = dict.fromkeys(name for row, _ in rows for name in row.result.effective_lr)
    alike = all(len({c.values for c in row.result.effective_lr.values()}) <= 1 for row, _ in rows)
    for name in list(names)[:1] if alike else names:
        label = "" if alike else f", {'UNet' if name == UNET else 'text encoder'}"

        def curve(row: Row, name: str = name) -> Curve:
            return _positive(row.result.effective_lr.get(name, Curve()))

        file = "effective_lr" if alike else f"effective_lr_{name}"
        yield _lines(file, f"Effective learning rate{label}", rows, curve, y="effective lr", log_y=True)


def _positive(curve: Curve) -> Curve:
    """Without zeros, for a logarithmic axis."""
    kept = [t for t in zip(curve.steps, curve.seconds, curve.values, strict=True) if t[2] > 0]
    return Curve(*zip(*kept, strict=True)) if kept else Curve()


def _grid_plot(rows: Sequence[tuple[Row, Style]], measure: str) -> Plot | None:
    """The best loss, its mean over seeds, against the learning rate: a line for each optimizer with several rates."""
    losses: dict[str, dict[float, list[float]]] = {}
    looks: dict[str, Style] = {}
    for row, style in rows:
        looks.setdefault(row.member.name, style)
        if row.best:
            of_optimizer = losses.setdefault(row.member.name, {})
            of_optimizer.setdefault(float(row.member.main.options.lr), []).append(row.best[0])
    series = [
        Series(name, looks[name], [(lr, fmean(found)) for lr, found in sorted(by_lr.items())])
        for name, by_lr in losses.items()
        if len(by_lr) > 1
    ]
    seeds = ", mean over seeds" if any(row.member.seed_of for row, _ in rows) else ""
    return line_plot("lr_grid", f"Best {measure} against lr{seeds}", series, x="lr (log)", y=measure, log_x=True)


def _bars(rows: Sequence[tuple[Row, Style]]) -> Iterator[Plot | None]:
    kinds: tuple[tuple[str, str, Callable[[Result], float | None], Callable[[float | None], str], str], ...] = (
        ("step_time", "Time per optimizer step", lambda r: r.step_seconds, duration, "seconds"),
        ("optimizer_state", "Memory of the optimizers' state", lambda r: r.state_mb, megabytes, "MB"),
    )
    for name, title, value, text, label in kinds:
        bars = tuple(Bar(row.member.label, s, v, text(v)) for row, s in rows if (v := value(row.result)) is not None)
        yield BarPlot(name, title, bars, label) if bars else None


def _time_unit(rows: Sequence[Row]) -> tuple[str, float]:
    longest = max((row.curve.seconds[-1] for row in rows if row.curve), default=0.0)
    return ("hours", 3600) if longest > HOURS else ("minutes", 60) if longest > MINUTES else ("seconds", 1)


# Samples


@dataclass(frozen=True)
class SampleColumn:
    """The pictures of a run, or those from before; None where one is missing."""

    title: str
    pictures: tuple[Path | None, ...]


def sample_columns(summary: Summary) -> tuple[list[str], list[SampleColumn]]:
    """Labels of the rows, and the columns: before training, then each run that drew any."""
    drawn = [row for row in summary.rows if row.result.samples]
    before = next((row.result.before for row in summary.rows if row.result.before), ())
    count = max((len(pictures) for pictures in (before, *(row.result.samples for row in drawn))), default=0)
    columns = [("before training", before)] if before else []
    columns += [(row.member.label, row.result.samples) for row in drawn]
    padded = [SampleColumn(title, (*found, *[None] * (count - len(found)))) for title, found in columns]
    record = next((row.result.record for row in summary.rows if row.result.record), {})
    names = next((pictures for _, pictures in columns if len(pictures) == count), ())
    return _sample_labels(record.get("sample_prompts") or {}, names), padded


def _sample_labels(settings: dict[str, Any], pictures: Sequence[Path]) -> list[str]:
    """Prompt and guidance scale of each picture."""
    prompts, scales = settings.get("samples") or [], settings.get("cfgs") or []
    labels = []
    for index, picture in enumerate(pictures):
        scale = picture.stem.rpartition("-cfg")[2]
        prompt = prompts[index // len(scales)] if scales and index // len(scales) < len(prompts) else {}
        text = _caption_of(picture) if prompt.get("random_caption") else str(prompt.get("prompt", ""))
        labels.append((text or "(empty prompt)") + (f" (cfg {scale})" if len(scales) > 1 else ""))
    return labels


def _caption_of(picture: Path) -> str:
    """The caption of the data that a picture was drawn from, from its comment; see `Sample.label`."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            comment = image.info.get("comment", b"")
    except OSError:
        return ""
    words: str = bytes(comment).decode("utf-8", "replace")
    return words.rpartition(" | cfg ")[0].partition(" | not: ")[0]


def embedded(path: Path) -> str:
    """A picture as the address of an img element, no larger than the report shows it. Raises OSError."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((LARGEST_SAMPLE, LARGEST_SAMPLE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def sample_sheet(labels: Sequence[str], columns: Sequence[SampleColumn], tile: int = 160) -> Any:
    """All samples as one PIL picture: a row for each prompt, a column for each run."""
    from PIL import Image, ImageDraw, ImageFont

    font, line, side = ImageFont.load_default(13), 22, 150
    sheet = Image.new("RGB", (side + tile * len(columns), line + tile * len(labels)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, column in enumerate(columns):
        left = side + tile * index
        pen.text((left + 3, 4), column.title, "black", font)
        for row, picture in enumerate(column.pictures):
            if picture:
                with Image.open(picture) as image:
                    fitted = image.convert("RGB")
                fitted.thumbnail((tile - 4, tile - 4))
                if max(fitted.size) < tile - 4:
                    factor = (tile - 4) / max(fitted.size)
                    fitted = fitted.resize((round(fitted.width * factor), round(fitted.height * factor)))
                sheet.paste(fitted, (left + 2, line + tile * row + 2))
    for row, label in enumerate(labels):
        pen.multiline_text((4, line + tile * row + 6), wrapped(label, 20), "black", font)
    return sheet


def wrapped(text: str, letters: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, letters)[:8])
