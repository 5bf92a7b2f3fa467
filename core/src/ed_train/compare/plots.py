"""Draw plots: lines over an axis of steps or time, bars, both with a label at each mark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from ed_train.compare.canvas import COLOURS, DASHES, GRID, INK, MARKERS, MUTED, Canvas, PngCanvas, Point
from ed_train.compare.scales import Axis, axis_over, tick_texts

WIDTH, HEIGHT = 640, 360
LEFT, TOP, BOTTOM = 62, 34, 44
LABEL_GAP, LETTER = 13, 6.1
MOST_MARKERS = 40
LOG_FROM = 8
"""Above this ratio of the highest to the lowest value an axis is logarithmic."""
CUT_AT = 1.25
"""Losses above this multiple of the highest first one, and of what most lines reach, are cut off."""


@dataclass(frozen=True)
class Style:
    """How a run looks in every plot; `key` is its number."""

    key: int
    colour: str
    dash: tuple[int, ...]
    marker: str


@dataclass(frozen=True)
class Series:
    """A line; `points` are only finite."""

    label: str
    style: Style
    points: Sequence[Point]


@dataclass(frozen=True)
class Bar:
    label: str
    style: Style
    value: float
    text: str


def styles(names: Sequence[str]) -> list[Style]:
    """A colour for each optimizer, a dash and a marker for each of its runs; more than eight share colours, too."""
    order = list(dict.fromkeys(names))
    used: set[tuple[int, int]] = set()
    found = []
    for key, name in enumerate(names):
        index = order.index(name)
        colour = index % COLOURS
        free = [n for n in range(len(DASHES)) if (colour, n) not in used]
        dash = free[0] if free else key % len(DASHES)
        used.add((colour, dash))
        found.append(Style(key, f"c{colour}", DASHES[dash], MARKERS[(index + dash) % len(MARKERS)]))
    return found


@dataclass(frozen=True)
class LinePlot:
    """Lines with the axes that show all of them."""

    name: str
    title: str
    series: tuple[Series, ...]
    x: Axis
    y: Axis

    @property
    def height(self) -> int:
        """Enough for a label for each line."""
        return max(HEIGHT, TOP + BOTTOM + LABEL_GAP * (len(self.series) + 1))

    def draw(self, canvas: Canvas) -> None:
        """Draw it; the canvas has `WIDTH` and the plot's height."""
        right = WIDTH - 14 - LETTER * max(len(s.label) for s in self.series)
        frame = (LEFT, TOP, right, self.height - BOTTOM)
        _axes(canvas, self.title, self.x, self.y, frame)
        for series in self.series:
            self._draw_series(canvas, series, frame)
        ends = [(x, min(y, self.y.high)) for x, y in (series.points[-1] for series in self.series)]
        _labels(canvas, [(s, _at(end, self.x, self.y, frame)) for s, end in zip(self.series, ends, strict=True)], frame)

    def _draw_series(self, canvas: Canvas, series: Series, frame: Frame) -> None:
        style = series.style
        for part in below(series.points, self.y.high):
            points = [_at(point, self.x, self.y, frame) for point in part]
            canvas.line(points, style.colour, 1.8, style.dash, style.key)
        for x, y in series.points if len(series.points) <= MOST_MARKERS else ():
            if y <= self.y.high:
                hint = f"{series.label}: {self.y.label} {y:.4g} at {self.x.label} {x:.4g}"
                canvas.marker(_at((x, y), self.x, self.y, frame), style.marker, style.colour, style.key, hint)


def line_plot(
    name: str, title: str, series: Iterable[Series], *, x: str, y: str, log_x: bool = False, log_y: bool = False,
    cut: bool = False,
) -> LinePlot | None:  # fmt: skip
    """A plot of lines, with axes that suit them.

    Args:
        name: of its file.
        title: in words.
        series: those without a point are left out.
        x: label of the axis.
        y: likewise.
        log_x: a logarithmic axis.
        log_y: likewise; it is one anyway where values are far apart.
        cut: leave out what lies far above where the lines begin, so that one that goes off does not flatten the others.

    Returns:
        The plot; None if there is nothing to show.
    """
    shown = tuple(s for s in series if s.points)
    if not shown:
        return None
    xs, ys = ([point[i] for s in shown for point in s.points] for i in (0, 1))
    if cut:
        calm = median_low(max(y for _, y in s.points) for s in shown)
        ceiling = CUT_AT * max(calm, *(s.points[0][1] for s in shown))
        ys = [y for y in ys if y <= ceiling]
    log_y = min(ys) > 0 and (log_y or max(ys) / min(ys) > LOG_FROM)
    log_x = log_x and min(xs) > 0
    return LinePlot(name, title, shown, axis_over(xs, label=x, log=log_x), axis_over(ys, label=y, log=log_y))


@dataclass(frozen=True)
class BarPlot:
    """Horizontal bars from 0, each with its value."""

    name: str
    title: str
    bars: tuple[Bar, ...]
    label: str

    @property
    def height(self) -> int:
        return TOP + BOTTOM + 22 * len(self.bars)

    def draw(self, canvas: Canvas) -> None:
        """Draw it; the canvas has `WIDTH` and the plot's height."""
        left = 20 + LETTER * max(len(bar.label) for bar in self.bars)
        right, bottom = WIDTH - 70, self.height - BOTTOM
        axis = axis_over([0, *(bar.value for bar in self.bars)], label=self.label, from_zero=True)
        canvas.text((12, 14), self.title, size=13, bold=True)
        for tick, text in zip(axis.ticks, tick_texts(axis.ticks), strict=True):
            x = left + axis.share(tick) * (right - left)
            canvas.line([(x, TOP), (x, bottom)], GRID)
            canvas.text((x, bottom + 12), text, MUTED, anchor="middle")
        canvas.text(((left + right) / 2, bottom + 30), self.label, MUTED, anchor="middle")
        for index, bar in enumerate(self.bars):
            y = TOP + 22 * index + 11
            end = left + max(axis.share(bar.value) * (right - left), 1)
            corners = [(left, y - 7), (end, y - 7), (end, y + 7), (left, y + 7)]
            canvas.polygon(corners, bar.style.colour, bar.style.key, f"{bar.label}: {bar.text}")
            canvas.text((left - 6, y), bar.label, anchor="end", key=bar.style.key)
            canvas.text((end + 6, y), bar.text, MUTED, key=bar.style.key)


Plot = LinePlot | BarPlot


def below(points: Sequence[Point], limit: float) -> list[list[Point]]:
    """The parts of a line that do not lie above a limit; they end where it crosses the limit."""
    parts: list[list[Point]] = []
    before: Point | None = None
    for x, y in points:
        inside, was_inside = y <= limit, before is not None and before[1] <= limit
        if inside and not was_inside:
            parts.append([])
        if before and inside != was_inside:
            share = (limit - before[1]) / (y - before[1])
            parts[-1].append((before[0] + share * (x - before[0]), limit))
        if inside:
            parts[-1].append((x, y))
        before = (x, y)
    return parts


def draw_png(plot: Plot) -> PngCanvas:
    """The plot as a picture."""
    canvas = PngCanvas(WIDTH, plot.height)
    plot.draw(canvas)
    return canvas


Frame = tuple[float, float, float, float]


def _at(point: Point, x: Axis, y: Axis, frame: Frame) -> Point:
    left, top, right, bottom = frame
    return left + x.share(point[0]) * (right - left), bottom - y.share(point[1]) * (bottom - top)


def _axes(canvas: Canvas, title: str, x: Axis, y: Axis, frame: Frame) -> None:
    left, top, right, bottom = frame
    canvas.text((12, 14), title, size=13, bold=True)
    for tick, text in zip(y.ticks, tick_texts(y.ticks), strict=True):
        height = bottom - y.share(tick) * (bottom - top)
        canvas.line([(left, height), (right, height)], GRID)
        canvas.text((left - 6, height), text, MUTED, anchor="end")
    for tick, text in zip(x.ticks, tick_texts(x.ticks), strict=True):
        across = left + x.share(tick) * (right - left)
        if left <= across <= right and tick >= 0:
            canvas.line([(across, bottom), (across, bottom + 4)], MUTED)
            canvas.text((across, bottom + 14), text, MUTED, anchor="middle")
    canvas.line([(left, top), (left, bottom), (right, bottom)], MUTED)
    canvas.text(((left + right) / 2, bottom + 32), x.label, MUTED, anchor="middle")
    canvas.text((12, (top + bottom) / 2), f"{y.label}{' (log)' if y.log else ''}", MUTED, anchor="middle", turned=True)


def _labels(canvas: Canvas, ends: Sequence[tuple[Series, Point]], frame: Frame) -> None:
    """A label for each line beside its end, moved apart where they would meet, with a thin line to it."""
    _, top, right, bottom = frame
    ordered = sorted(ends, key=lambda end: end[1][1])
    heights = spread([point[1] for _, point in ordered], top, bottom)
    for (series, point), height in zip(ordered, heights, strict=True):
        style = series.style
        if math.dist(point, (right, height)) > 4:
            canvas.line([(point[0] + 4, point[1]), (right + 3, height)], GRID)
        canvas.text((right + 6, height), series.label, style.colour if style.colour != "c6" else INK, key=style.key)


def spread(heights: Sequence[float], top: float, bottom: float, gap: float = LABEL_GAP) -> list[float]:
    """Heights, in order, moved as little as needed to lie a gap apart and within the frame, if it is high enough."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap if placed else top))
    limit = bottom
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed
