"""Give files and folders their final name only once they are whole and on the disk.

Everything is written under a temporary name beside the target, synced, described in a manifest, and renamed. A crash
at any moment leaves the old state, or the new one, and perhaps a temporary name that `clean_partials` removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError

from ed_train.data.files import sync_folder
from ed_train.errors import CheckpointError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
CHECKSUM = "manifest_sha256"
"""The manifest's last key: over everything else in it, since nothing else vouches for step, epoch and options."""

_PARTIAL = re.compile(r"\..+\.partial-(?:([0-9a-f]{8})-)?(\d+)")
"""Of whom: where process ids mean something, as `_here` says, and the process id."""
_DAY = 24 * 3600


@contextmanager
def atomic_folder(target: Path, extra: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Fill a folder that appears as `target` when the block ends without an error, and not at all otherwise.

    Args:
        target: the final name; nothing of that name may exist.
        extra: what the manifest says besides the files; read when the block ends, JSON values only.

    Yields:
        The temporary folder to write into.

    Raises:
        CheckpointError: `target` exists, or the disk is full, read-only or failing; nothing is left behind.
    """
    with _partial(target) as temp:
        temp.mkdir(parents=True)
        yield temp
        files = sorted(path for path in temp.rglob("*") if path.is_file())
        entries = {path.relative_to(temp).as_posix(): _entry(path) for path in files}
        write_manifest(temp, {"format": MANIFEST_FORMAT, **(extra or {}), "files": entries})
        for path in (*files, temp / MANIFEST):
            _finish_file(path)
        for folder in (*(path for path in temp.rglob("*") if path.is_dir()), temp):
            sync_folder(folder)


@contextmanager
def atomic_file(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """The same for a single file, without a manifest. Yields the temporary path to write.

    With `replace` the file may exist, and stays as it is until the new one takes its place.
    """
    with _partial(target, replace=replace) as temp:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        _finish_file(temp)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with a checksum of itself. Raises OSError."""
    signed = {**manifest, CHECKSUM: _checksum(manifest)}
    (folder / MANIFEST).write_text(json.dumps(signed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or it has a newer format; says which.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for whoever writes into it
            raise OSError("not a regular file")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}; it is no checkpoint of ed-train, or not whole") from None
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path} is damaged: it lists no files")
    if manifest.get("format") != MANIFEST_FORMAT:
        wanted = f"this ed-train reads format {MANIFEST_FORMAT}"
        raise CheckpointError(f"{path} has format {manifest.get('format')!r}; {wanted}; upgrade ed-train")
    if manifest.pop(CHECKSUM, None) != _checksum(manifest):
        raise CheckpointError(f"{path} has changed since it was written")
    if wrong := [name for name, entry in manifest["files"].items() if not _is_entry(name, entry)]:
        raise CheckpointError(f"{path} is not as ed-train writes it; unusable names or sizes of files: {wrong[:5]}")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], *, optional: Iterable[str] = ()) -> None:
    """Compare a checkpoint's files with its manifest, byte by byte.

    Args:
        folder: the checkpoint.
        manifest: of it.
        optional: names of files that may be missing.

    Raises:
        CheckpointError: a file is missing, cut short or changed; names all of them.
    """
    wrong = []
    may_be_missing = set(optional)
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            if not path.is_file():
                wrong += [] if name in may_be_missing else [f"{name} is missing"]
            elif path.stat().st_size != entry["size"]:
                wrong.append(f"{name} has {path.stat().st_size:,} bytes instead of {entry['size']:,}")
            elif file_sha256(path) != entry["sha256"]:
                wrong.append(f"{name} has changed since it was written")
        except OSError as error:
            wrong.append(f"{name} cannot be read: {error.strerror}")
    if wrong:
        raise CheckpointError(f"{folder} is damaged: {'; '.join(wrong)}")


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint so that a crash leaves no half of it under its name."""
    temp = _temporary(folder)
    _remove(temp)
    folder.rename(temp)
    _remove(temp)


def is_partial(path: Path) -> bool:
    """Whether a path has the name of something half written."""
    return bool(_PARTIAL.fullmatch(path.name))


def clean_partials(parent: Path) -> list[Path]:
    """Remove what killed processes left half written in `parent`; returns what was removed.

    Another host, or a container, may be saving there, and whether its processes are alive cannot be known: what is of
    elsewhere goes when nothing in it was changed for a day.

    Call it at start, before the first save: a partial folder with this process's own id is an older process's, too.
    """
    removed = []
    for path in sorted(parent.glob(".*.partial-*")):
        match = _PARTIAL.fullmatch(path.name)
        if match and (_is_gone(int(match[2])) if match[1] == _here() else time.time() - _changed(path) > _DAY):
            _remove(path)
            removed.append(path)
    return removed


def _temporary(target: Path) -> Path:
    """What `target` is called while this process writes or removes it."""
    return target.with_name(f".{target.name}.partial-{_here()}-{os.getpid()}")


@cache
def _here() -> str:
    """Tells those apart whose process ids are not those of one another: hosts, and the containers of one host."""
    try:
        processes = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux
        processes = ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode(errors="replace")).hexdigest()[:8]


def _is_gone(process: int) -> bool:
    import psutil

    return process == os.getpid() or not psutil.pid_exists(process)


def _changed(path: Path) -> float:
    """When something in a file or folder was last changed, in seconds since the epoch."""
    names = [os.path.join(folder, name) for folder, _, files in os.walk(path) for name in (".", *files)]
    moments = []
    for name in (str(path), *names):
        with suppress(OSError):  # whoever writes there has just renamed or removed it
            moments.append(os.lstat(name).st_mtime)
    return max(moments, default=time.time())


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _partial(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Lend the temporary path; rename it at the end, or remove it if something went wrong."""
    if not replace:
        _refuse_existing(target)
    temp = _temporary(target)
    _remove(temp)  # left by an older process with the same id, as is common in containers
    renamed = False
    try:
        yield temp
        if not replace:
            _refuse_existing(target)
        (temp.replace if replace else temp.rename)(target)
        renamed = not replace
        sync_folder(target.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        if renamed:  # the disk did not take the name: what is said not to be saved must not be found later
            with suppress(OSError):
                target.rename(temp)
        _remove(temp)
        raise CheckpointError(f"{target} was not saved: {_reason(error)}") from error
    except BaseException:
        _remove(temp)
        raise


def _reason(error: BaseException) -> str:
    """Why a write failed; torch.save hides the error of a full disk behind its own of a file that ends too early."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise CheckpointError(f"{target} already exists and is not overwritten; choose another name or remove it")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _checksum(manifest: Mapping[str, Any]) -> str:
    """A sha256 over the content, however it is laid out."""
    content = json.loads(json.dumps(manifest))  # tuples become lists, as they do in the file
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def _finish_file(path: Path) -> None:
    with suppress(PermissionError):  # mounts without owners and modes refuse it, such as Windows' drives under Linux
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _is_entry(name: str, entry: object) -> bool:
    """Whether it describes a file within the folder."""
    path = PurePath(name)
    inside = name not in ("", ".") and "\0" not in name and not path.is_absolute() and ".." not in path.parts
    return (
        inside and isinstance(entry, dict) and type(entry.get("size")) is int and isinstance(entry.get("sha256"), str)
    )
