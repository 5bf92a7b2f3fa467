"""What takes long before training says so in a terminal and in a file alike."""

from __future__ import annotations

import io
import sys

import ed_train.progress
from ed_train.progress import progress_bar


def test_outside_a_terminal_progress_is_lines(capsys, monkeypatch) -> None:
    monkeypatch.setattr(ed_train.progress, "SECONDS_BETWEEN_LINES", 0)
    with progress_bar("encoding images", 2, "image", shown=True) as bar:
        bar.update()
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encoding images: 0 of 2, ? left"
    assert lines[-1] == "encoding images: 2 of 2, 00:00 left"


def test_a_short_check_and_other_processes_print_nothing(capsys) -> None:
    list(progress_bar("checking images", 3, "image", shown=True, iterable=range(3), leave=False, delay=2))
    list(progress_bar("checking images", 3, "image", shown=False, iterable=range(3)))
    assert capsys.readouterr().err == ""


def test_in_a_terminal_it_is_a_bar(monkeypatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("encoding images", 2, "image", shown=True) as bar:
        bar.update(2)
    assert "\rencoding images: 100%" in terminal.getvalue()
