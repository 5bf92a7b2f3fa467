"""Reading text that people made with any editor, naming files in messages, and writing files that survive a crash."""

from __future__ import annotations

import errno
import os
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from ed_train.errors import Problem, printable

MAX_TEXT_BYTES = 1 << 20
"""A caption or settings file above 1 MB is something else that got the wrong name."""


@dataclass
class Findings:
    """What turned up while files of a data folder were read.

    Attributes:
        problems: what the user has to correct before training.
        notes: kinds of oddities that training survives, each with the file concerned.
        used: the caption and settings files that were used.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[tuple[str, Path]] = field(default_factory=list)
    used: list[Path] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        self.problems += other.problems
        self.notes += other.notes
        self.used += other.used


class FolderFiles:
    """The regular files of one folder, found whatever the case and Unicode form (NFC, NFD) of their names."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._exact = sorted(names)
        self._by_name = {_comparable(name): name for name in reversed(self._exact)}
        self._by_name |= {name: name for name in self._exact}

    def __iter__(self) -> Iterator[Path]:
        return iter(self._folder / name for name in self._exact)

    def find(self, name: str) -> Path | None:
        """Return the file called exactly `name`, else one that differs in case or Unicode form only, else None."""
        found = self._by_name.get(name) or self._by_name.get(_comparable(name))
        return self._folder / found if found else None


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def read_text(path: Path) -> tuple[str, list[str]]:
    """Read a text file of unknown encoding: UTF-8 with or without a byte order mark, UTF-16 with one, else cp1252.

    Returns:
        The text without surrounding white space, and a note for whatever was not plain UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger than 1 MB.
    """
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError("larger than 1 MB")
    text, notes = _decoded(data)
    if "\0" in text:
        text = text.replace("\0", "")
        notes.append("NUL characters removed")
    return text.strip(), notes


def _decoded(data: bytes) -> tuple[str, list[str]]:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace"), ["not UTF-8, read as UTF-16"]
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), ["not UTF-8, read as cp1252"]


def shown(name: Path | str) -> str:
    """Return a file name for a one-line message: line breaks and bytes that are not text appear as escapes."""
    return printable(str(name))


def reason(error: Exception) -> str:
    """Return why a file cannot be used, in one line and without its name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = shown(" ".join(text.split()))
    return text[:1].lower() + text[1:]


_TEMPORARY = re.compile(r"([0-9a-f]{32}\.safetensors|[a-z]+\.json)\.[0-9a-f]{32}\.tmp")
"""What `write_atomic` writes packs and indices of the caches to, before they have their names."""
_DAY = 24 * 3600


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is there completely or not at all, also after a crash or with two writers.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_half_written(folder: Path) -> None:
    """Delete what processes that were killed have left of `write_atomic`; what is young may still be in the making.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in folder.glob("*.tmp"):
        with suppress(FileNotFoundError):  # its owner has just finished it
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > _DAY:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash, where the system can.

    Raises:
        OSError: the disk is failing.
    """
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened; the rename itself is durable
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some shared and FUSE file systems know no such thing
            raise
    finally:
        os.close(descriptor)
