"""A store of small tensors on disk that several runs may fill and read at once, and that a crash cannot spoil."""

from __future__ import annotations

import contextlib
import logging
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ed_train.data.files import reason, remove_half_written, shown, write_atomic
from ed_train.errors import ConfigError, Problem

logger = logging.getLogger(__name__)

_PACK_BYTES = 64 << 20
_PACK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Place:
    """An open pack that holds an entry, and the entry's checksum."""

    path: Path
    pack: Any
    checksum: str | None

    def is_sound(self, key: str) -> bool:
        try:
            return checksum(self.pack.get_tensor(key)) == self.checksum
        except SafetensorError:
            return False


def checksum(tensor: Tensor) -> str:
    """Of a tensor's type, shape and bytes: CRC-32, against disks and memory that fail, not against people."""
    header = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{zlib.crc32(content, header):08x}"


class TensorStore:
    """Tensors by string key in a folder of packs, which are safetensors files that are written once and never changed.

    A pack appears under its name only when it is complete and on disk. One that is damaged all the same is left out
    with a warning, and what it held counts as missing. So does an entry whose bytes are not those that were written:
    it is compared with its checksum when somebody first asks whether it is there.

    Attributes:
        used: the packs of the entries that were asked for or added.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder, which is made if need be.

        Raises:
            ConfigError: it cannot be made or read.
        """
        self._folder = folder
        self._packs: dict[str, list[_Place]] = {}  # by key, where it is; the first one counts
        self._sound: set[str] = set()  # the keys that were compared with their checksums
        self._known: set[str] = set()
        self._damaged: set[Path] = set()
        self.used: set[Path] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_half_written(folder)
            self.refresh()
        except OSError as error:
            message = f"cannot be used as a cache folder: {reason(error)}; choose another one"
            raise ConfigError([Problem(shown(folder), "", message)]) from error

    def __contains__(self, key: str) -> bool:
        while places := self._packs.get(key):
            place = places[0]
            if key in self._sound or place.is_sound(key):
                self._sound.add(key)
                self.used.add(place.path)
                return True
            places.pop(0)
            if not places and place.path not in self._damaged:
                self._damaged.add(place.path)
                logger.warning("%s: entries of it are damaged; they are made again", shown(place.path))
        return False

    def get(self, key: str) -> Tensor:
        """Return a tensor that maps the file: read it, never write to it. Ask whether it is there first.

        Raises:
            KeyError: there is none.
        """
        tensor: Tensor = self._packs[key][0].pack.get_tensor(key)
        return tensor

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors as one pack; they are on disk when this returns.

        Raises:
            ConfigError: the disk is full or the folder cannot be written to; the store is as it was.
        """
        if not tensors:
            return
        path = self._folder / f"{uuid4().hex}.safetensors"
        try:
            write_atomic(path, save(dict(tensors), {key: checksum(tensor) for key, tensor in tensors.items()}))
        except OSError as error:
            message = f"the cache cannot be written: {reason(error)}; free some space or choose another folder"
            raise ConfigError([Problem(shown(self._folder), "", message)]) from error
        self._open(path)
        self.used.add(path)

    def refresh(self) -> None:
        """Take in the packs that other processes have added."""
        found = []
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(found):  # the oldest of two packs with one key keeps it, so that values never change
            if path.name not in self._known:
                self._open(path)

    def _open(self, path: Path) -> None:
        self._known.add(path.name)
        try:
            pack: Any = safe_open(path, framework="pt")
            keys, checksums = pack.keys(), pack.metadata() or {}
        except FileNotFoundError:  # another process has just cleared it away
            return
        except (SafetensorError, OSError) as error:
            logger.warning("%s: damaged, its entries are made again: %s", shown(path), reason(error))
            return
        for key in keys:
            self._packs.setdefault(key, []).append(_Place(path, pack, checksums.get(key)))


@dataclass
class PackWriter:
    """Tensors that wait to be written as one pack; a crash loses only those that still wait."""

    store: TensorStore
    tensors: dict[str, Tensor] = field(default_factory=dict)
    bytes: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, key: str, tensor: Tensor) -> None:
        """Take a tensor, a copy of it; writes what waits if that is much, or has waited for long."""
        self.tensors[key] = tensor.clone(memory_format=torch.contiguous_format)
        self.bytes += tensor.nbytes
        if self.bytes > _PACK_BYTES or time.monotonic() - self.since > _PACK_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what waits. Raises ConfigError as `TensorStore.add` does."""
        tensors, self.tensors, self.bytes, self.since = self.tensors, {}, 0, time.monotonic()
        self.store.add(tensors)
