"""What was once computed from a file, remembered as long as the file's size and modification time stay the same."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ed_train.data.files import reason, shown, write_atomic

logger = logging.getLogger(__name__)


class FileMemo:
    """Values that can be written as JSON, by file and kind.

    Several runs may share the file that they are kept in; losing it costs time only.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Open a memory.

        Args:
            file: where it is kept; None to forget it with the process.
        """
        self._file = file
        self._known: dict[str, list[Any]] = _read(file) if file else {}

    def value(self, path: Path, kind: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` once returned for this content of `path`, calling it only if that is not known.

        Args:
            path: the file that the value depends on, and nothing else.
            kind: tells the values of one file apart.
            compute: returns something that is the same after it was written as JSON.

        Raises:
            OSError: there is no such file; and whatever `compute` raises.
        """
        stat = path.stat()
        state, key = [stat.st_size, stat.st_mtime_ns], f"{kind}:{os.path.abspath(path)}"
        known = self._known.get(key)
        if known and known[:2] == state:
            return known[2]
        value = compute()
        self._known[key] = [*state, value]
        self._save()
        return value

    def _save(self) -> None:
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._known = {**_read(self._file), **self._known}
            write_atomic(self._file, json.dumps(self._known).encode())
        except OSError as error:
            logger.warning("%s: not written, models are hashed again next time: %s", shown(self._file), reason(error))


def _read(file: Path) -> dict[str, list[Any]]:
    try:
        data: Any = json.loads(file.read_bytes())
        return {str(key): [int(size), int(mtime), value] for key, (size, mtime, value) in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: damaged, models are hashed again: %s", shown(file), reason(error))
        return {}
