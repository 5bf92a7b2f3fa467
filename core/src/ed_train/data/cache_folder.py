"""The size of a cache folder: what lies in it, when it was last used, and what may go. Runs without torch."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ed_train.data.files import reason, remove_half_written, shown, write_atomic

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

KINDS = {"latents": "latents", "tokens": "token ids", "text": "text embeddings"}
"""The folders of packs in a cache folder, and what they hold."""

_PACK = re.compile(r"[0-9a-f]{32}\.safetensors")
_DAY = 24 * 3600


@dataclass(frozen=True)
class Pack:
    """A file of cached entries: its size, and when a run last used it, in seconds since the epoch."""

    path: Path
    bytes: int
    used: float


class CacheInUseError(Exception):
    """A run is filling or opening the caches."""


class CacheFolder:
    """All that runs have cached in one folder. Nothing but what the trainer itself wrote is ever touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._record = folder / "used.json"

    def packs(self) -> list[Pack]:
        """The packs, those that were not used for longest first."""
        used, found = self._read(), []
        for path in self._pack_files():
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process removes them, too
                continue
            found.append(Pack(path, stat.st_size, max(stat.st_mtime, used.get(self._name(path), 0.0))))
        return sorted(found, key=lambda pack: (pack.used, pack.path))

    def mark_used(self, paths: Iterable[Path]) -> None:
        """Remember that a run uses these packs now. A failure is a warning."""
        now, present = time.time(), {self._name(path) for path in self._pack_files()}
        used = {**self._read(), **{self._name(path): now for path in paths}}
        try:
            content = {name: moment for name, moment in used.items() if name in present}
            write_atomic(self._record, json.dumps(content).encode())
        except OSError as error:
            logger.warning("%s: not written: %s", shown(self._record), reason(error))

    def clear(self, days: float) -> list[Pack]:
        """Remove what no run has used for so many days, and what killed processes left half written.

        A run that uses a pack meanwhile is not disturbed: it has it open.

        Raises:
            CacheInUseError: a run is about to.
            OSError: a file cannot be removed.
        """
        oldest = time.time() - days * _DAY
        with self._locked(alone=True):
            gone = self._remove([pack for pack in self.packs() if pack.used <= oldest])
            for folder in self._folders:
                remove_half_written(folder)
        return gone

    @contextmanager
    def being_opened(self) -> Generator[None]:
        """A block in which nobody removes packs. At its end this process has those open that it needs."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(alone=False):
            yield

    def shrink(self, limit: float, keep: Iterable[Path]) -> list[Pack]:
        """Remove the packs that were not used for longest until all together have at most `limit` bytes.

        Args:
            limit: in bytes.
            keep: packs that stay whatever the limit: those of this run.

        Returns:
            What was removed.

        Raises:
            CacheInUseError: a run is about to open some.
            OSError: a file cannot be removed.
        """
        packs, kept = self.packs(), set(keep)
        excess = sum(pack.bytes for pack in packs) - limit
        chosen: list[Pack] = []
        for pack in packs:
            if excess <= 0:
                break
            if pack.path not in kept:
                chosen.append(pack)
                excess -= pack.bytes
        with self._locked(alone=True):
            return self._remove(chosen)

    def _remove(self, packs: Sequence[Pack]) -> list[Pack]:
        """Remove packs; returns them. Raises OSError if one cannot be removed."""
        for pack in packs:
            pack.path.unlink(missing_ok=True)
        return list(packs)

    @contextmanager
    def _locked(self, *, alone: bool) -> Generator[None]:
        """Lock the folder, together with others or alone; the lock goes with the process, however it ends.

        Raises:
            CacheInUseError: others have it, and this process wants it alone.
        """
        descriptor = None
        try:
            if fcntl:
                # whoever may not write here removes nothing, and some file systems have no locks
                with suppress(OSError):
                    descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
                    except BlockingIOError:
                        raise CacheInUseError from None
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    @property
    def _folders(self) -> list[Path]:
        return [self.folder, *(self.folder / kind for kind in KINDS)]

    def _pack_files(self) -> list[Path]:
        found = (path for folder in self._folders if folder.is_dir() for path in folder.iterdir())
        return [path for path in found if _PACK.fullmatch(path.name) and path.is_file() and not path.is_symlink()]

    def _name(self, path: Path) -> str:
        return f"{path.parent.name}/{path.name}"

    def _read(self) -> dict[str, float]:
        try:
            return {str(name): float(moment) for name, moment in json.loads(self._record.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            logger.warning("%s: damaged; it is made anew", shown(self._record))
            return {}


def shown_size(size: float) -> str:
    """Bytes for people: ``12 MB``, ``3.4 GB``."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def total(packs: Iterable[Pack]) -> str:
    """How many packs, and how large all together: ``3 files, 12 MB``."""
    listed = list(packs)
    return f"{len(listed)} file{'' if len(listed) == 1 else 's'}, {shown_size(sum(pack.bytes for pack in listed))}"


def keep_within(folder: Path, used: Iterable[Path], max_gb: float | None) -> list[str]:
    """Note what this run uses, remove what is over the limit, and say how large the cache is.

    Args:
        folder: the cache folder.
        used: the packs of this run.
        max_gb: the limit in GB; None for no limit.

    Returns:
        Lines for the user.
    """
    cache, mine = CacheFolder(folder), set(used)
    cache.mark_used(mine)
    lines, gone = [], list[Pack]()
    if max_gb is not None:
        try:
            gone = cache.shrink(max_gb * 1e9, mine)
        except CacheInUseError:
            lines.append("cache_max_gb: nothing was removed, since another run is opening the cache")
        except OSError as error:
            lines.append(f"cache_max_gb: {error.filename} cannot be removed: {reason(error)}")
    packs = cache.packs()
    size = sum(pack.bytes for pack in packs)
    line = f"cache: {folder}: {total(packs)}, of which this run uses {total(p for p in packs if p.path in mine)}"
    lines.insert(
        0, line + (f"; {total(gone)} unused for longest were removed (cache_max_gb {max_gb:g})" if gone else "")
    )
    if max_gb is not None and size > max_gb * 1e9 and len(lines) == 1:
        lines.append(f"the cache is larger than cache_max_gb {max_gb:g}, since this run needs all of it")
    return lines
