"""All sample pictures of one moment in one picture that a person can read: a block for each prompt, with its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
BLACK, GREY = "black", "#606060"
ACROSS = 4
"""Pictures side by side, unless a prompt has more of its own."""
NARROWEST = 256
"""Pixels of a block's width, so that its text is not broken after each word over tiny pictures."""
MOST_LINES = 6


@dataclass(frozen=True)
class Sample:
    """One drawn picture.

    Attributes:
        stem: a file name without extension that no other picture of the call has.
        row: the number of its prompt, from 0; all pictures of a prompt follow one another.
        prompt: what was drawn.
        negative_prompt: what was steered away from.
        seed: of its noise.
        cfg: guidance scale.
        image: the picture.
    """

    stem: str
    row: int
    prompt: str
    negative_prompt: str
    seed: int
    cfg: float
    image: Image.Image

    @property
    def label(self) -> str:
        """Prompt, guidance scale and seed, for people."""
        negative = f" | not: {self.negative_prompt}" if self.negative_prompt else ""
        return f"{self.prompt}{negative} | cfg {self.cfg:g}, seed {self.seed}"


@dataclass(frozen=True)
class _Block:
    """The pictures of one prompt, in a row, and the lines of text above them; the height is that of the pictures."""

    samples: Sequence[Sample]
    lines: Sequence[tuple[str, str]]
    width: int
    height: int


def sample_grid(samples: Sequence[Sample], title: str) -> Image.Image:
    """Arrange pictures of any sizes: a block for each prompt, and in it a picture for each guidance scale.

    Args:
        samples: the pictures, those of a prompt one after the other.
        title: the line above all.
    """
    font = ImageFont.load_default(min(max(max(min(s.image.size) for s in samples) // 20, 13), 32))
    line = round(sum(font.getmetrics()) * 1.1) if isinstance(font, ImageFont.FreeTypeFont) else 16
    blocks = [_block(list(group), font, line) for _, group in groupby(samples, lambda sample: sample.row)]
    per_row = max(1, ACROSS // max(len(block.samples) for block in blocks))
    per_row = min(per_row, len(blocks))
    rows = [blocks[start : start + per_row] for start in range(0, len(blocks), per_row)]
    gap, column = line, max(block.width for block in blocks)
    texts = [line * max(len(block.lines) for block in row) for row in rows]
    heights = [text + max(block.height for block in row) for text, row in zip(texts, rows, strict=True)]
    titles = _wrapped(title, font, per_row * (column + gap) - gap)
    top = gap + line * len(titles) + gap // 2
    size = (gap + per_row * (column + gap), top + sum(height + gap for height in heights))
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for number, text in enumerate(titles):
        pen.text((gap, gap + number * line), text, fill=BLACK, font=font)
    for row, text_height, height in zip(rows, texts, heights, strict=True):
        for number, block in enumerate(row):
            _paste(grid, pen, block, (gap + number * (column + gap), top), text_height, font, line)
        top += height + gap
    return grid


def _block(samples: Sequence[Sample], font: Font, line: int) -> _Block:
    gap, first, several = line // 3, samples[0], len(samples) > 1
    width = max(sum(s.image.width for s in samples) + gap * (len(samples) - 1), NARROWEST)
    scale = "" if several else f"cfg {first.cfg:g}, "
    lines = [(text, BLACK) for text in _wrapped(first.prompt or "(empty prompt)", font, width)]
    if first.negative_prompt:
        lines += [(text, GREY) for text in _wrapped(f"not: {first.negative_prompt}", font, width)]
    lines.append((f"{scale}seed {first.seed}", GREY))
    height = line * several + gap + max(s.image.height for s in samples)
    return _Block(samples, lines, width, height)


def _paste(
    grid: Image.Image, pen: ImageDraw.ImageDraw, block: _Block, corner: tuple[int, int], text_height: int,
    font: Font, line: int,
) -> None:  # fmt: skip
    """Draw a block; its pictures begin below the longest text of its row, so that they stand side by side."""
    left, top = corner
    for number, (text, colour) in enumerate(block.lines):
        pen.text((left, top + number * line), text, fill=colour, font=font)
    gap, top = line // 3, top + text_height
    for sample in block.samples:
        grid.paste(sample.image, (left, top + gap))
        if len(block.samples) > 1:
            pen.text((left, top + gap + sample.image.height), f"cfg {sample.cfg:g}", fill=BLACK, font=font)
        left += sample.image.width + gap


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in lines that are at most so many pixels wide; what does not fit into `MOST_LINES` ends with dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:  # a word of its own line, broken where even that is too short
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} ..."]
    return lines
