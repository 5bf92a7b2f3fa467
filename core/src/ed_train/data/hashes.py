"""Content hashes of image files, remembered so that a warm start reads no picture."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import PIL

from ed_train.data.files import reason, shown, write_atomic

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20


class ImageHashes:
    """sha256 by path, size and modification time, and which contents turned out to be undecodable.

    It is kept in one small file, which runs that share it merge into each other's. Losing it costs time only.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._hashes, self._undecodable = _read(file)
        self._changed = False

    def content(self, path: Path) -> str:
        """Return the sha256 of a file in hex; safe to call from several threads.

        Raises:
            OSError: the file cannot be read.
        """
        stat = path.stat()
        key, state = os.path.abspath(path), (stat.st_size, stat.st_mtime_ns)
        known = self._hashes.get(key)
        if known and known[:2] == state:
            return known[2]
        sha256 = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                sha256.update(block)
        self._hashes[key] = (*state, sha256.hexdigest())
        self._changed = True
        return sha256.hexdigest()

    def why_undecodable(self, content: str) -> str | None:
        """Return why this Pillow cannot decode the file with this hash, or None if nothing is known against it."""
        return self._undecodable.get(_by_this_pillow(content))

    def mark_undecodable(self, content: str, why: str) -> None:
        """Remember why this Pillow cannot decode it; another one may."""
        self._undecodable[_by_this_pillow(content)] = why
        self._changed = True

    def save(self) -> None:
        """Write what is new. A failure is a warning: the hashes are made again next time."""
        if not self._changed:
            return
        hashes, undecodable = _read(self._file)
        merged = {"files": {**hashes, **self._hashes}, "undecodable": {**undecodable, **self._undecodable}}
        try:
            write_atomic(self._file, json.dumps(merged).encode())
            self._changed = False
        except OSError as error:
            logger.warning("%s: not written, images are hashed again next time: %s", shown(self._file), reason(error))


def _by_this_pillow(content: str) -> str:
    return f"{content} {PIL.__version__}"


def _read(file: Path) -> tuple[dict[str, tuple[int, int, str]], dict[str, str]]:
    try:
        data: Any = json.loads(file.read_bytes())
        hashes = {path: (int(size), int(mtime), str(sha256)) for path, (size, mtime, sha256) in data["files"].items()}
        return hashes, {str(content): str(why) for content, why in data["undecodable"].items()}
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s: damaged, images are hashed again: %s", shown(file), reason(error))
        return {}, {}
