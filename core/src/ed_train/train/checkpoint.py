"""Write checkpoints while training goes on: a copy in memory, a thread that writes it, and only then the tidying up.

A checkpoint is a diffusers folder with a manifest: what it is, and size and checksum of each of its files. The training
state lies in it, too; it takes more room than the weights, and unless ``save_optimizer`` keeps it everywhere, only the
newest checkpoint of a run has it.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from ed_train.config.ema import ema_folder
from ed_train.config.resume import STATE_FILES, is_count
from ed_train.errors import CheckpointError
from ed_train.models.atomic import MANIFEST, atomic_folder, read_manifest, remove_folder
from ed_train.models.save import ModelWeights, write_pipeline
from ed_train.train.best import BEST_OF, remove_other_bests
from ed_train.train.single_files import SINGLE_FILE, remove_single_files, single_file, write_single_files
from ed_train.train.state import size_of

SPARE_MEMORY = 1 << 30
"""Bytes that stay free when a checkpoint is copied in memory."""
SPARE_DISK = 64 << 20
EMA_OF = "ema_of"
"""The key under which the manifest of an average names its run; it has no ``run_id``, being no checkpoint."""


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory.

    Attributes:
        target: its folder.
        pipeline: the arguments of `write_pipeline`.
        states: name of a file of `STATE_FILES` to its content; empty if the training state is not saved.
        manifest: what the manifest says beside the files.
        averaged: the components of `pipeline` with their moving average, to be written as a pipeline beside it.
    """

    target: Path
    pipeline: Mapping[str, Any]
    states: Mapping[str, Any]
    manifest: Mapping[str, Any]
    averaged: Mapping[str, ModelWeights] | None = None

    @property
    def run_id(self) -> str:
        """Of the run that it is of."""
        return str(self.manifest[BEST_OF]["run_id"] if BEST_OF in self.manifest else self.manifest["run_id"])

    @property
    def bytes(self) -> int:
        """About how much will be written."""
        weights = [w for w in self.pipeline.values() if isinstance(w, ModelWeights)]
        folders = [w for w in self.pipeline.values() if isinstance(w, Path)]
        files = sum(f.stat().st_size for folder in folders for f in folder.iterdir() if f.is_file())
        pipeline = sum(4 * tensor.numel() for w in weights for tensor in w.state.values()) + files  # in float32
        single = {"half": 0.5, "full": 1.0}.get(self.manifest.get(SINGLE_FILE, ""), 0.0)
        return int((2 if self.averaged else 1) * (1 + single) * pipeline) + size_of(self.states)

    @property
    def pipelines(self) -> dict[Path, Mapping[str, Any]]:
        """The arguments of `write_pipeline` by folder: the checkpoint's, and its average's."""
        average = {ema_folder(self.target): {**self.pipeline, **self.averaged}} if self.averaged else {}
        return {self.target: self.pipeline, **average}


@dataclass
class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time.

    Attributes:
        folder: where they lie.
        keep: how many of them stay; None for all.
        keep_states: whether older ones keep their training state.
        saved: the whole checkpoints of this run, oldest first.
        lines: what the user should know about the last one, beside that it is saved.
    """

    folder: Path
    keep: int | None
    keep_states: bool
    saved: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoint"))
    _pending: Future[Path] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write; `wait` tells how it went."""
        self._pending = self._pool.submit(self.write, snapshot)

    @property
    def busy(self) -> bool:
        return self._pending is not None and not self._pending.done()

    def wait(self) -> Path | None:
        """The checkpoint that was begun since this was last asked, if there is one, after it has been written.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending else None

    def close(self) -> None:
        self._pool.shutdown()

    def write(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, and only when it is whole remove what it replaces.

        The pipeline of its average comes first, so that a checkpoint that has its name also has that.

        Raises:
            CheckpointError: the disk is full or failing, or weights are not finite. Older checkpoints stay as they are.
        """
        self._check_space(snapshot)
        run_id = snapshot.run_id
        _remove_ema(snapshot.target, run_id)  # of a checkpoint that a crash has kept from getting its name
        try:
            self._write_both(snapshot)
        except BaseException:
            _remove_ema(snapshot.target, run_id)
            raise
        if BEST_OF in snapshot.manifest:
            remove_other_bests(snapshot.target, snapshot.manifest[BEST_OF])
        else:
            self.saved.append(snapshot.target)
            self._tidy_up(run_id)
        if SINGLE_FILE in snapshot.manifest:
            self.lines.append(write_single_files(snapshot.target, snapshot.pipelines, snapshot.manifest))
        return snapshot.target

    def _write_both(self, snapshot: Snapshot) -> None:
        if snapshot.averaged:
            manifest = {k: v for k, v in snapshot.manifest.items() if k not in ("run_id", BEST_OF)}  # it is neither
            ema_of = {EMA_OF: snapshot.run_id}
            with atomic_folder(ema_folder(snapshot.target), extra={**manifest, **ema_of}) as folder:
                write_pipeline(folder, **snapshot.pipelines[ema_folder(snapshot.target)])
        with atomic_folder(snapshot.target, extra=snapshot.manifest) as folder:
            write_pipeline(folder, **snapshot.pipeline)
            for name, state in snapshot.states.items():
                if name.endswith(".safetensors"):
                    save_file(state, folder / name)
                else:
                    with (folder / name).open("wb") as file:  # given the name, torch does not say why a write failed
                        torch.save(state, file)

    def _check_space(self, snapshot: Snapshot) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise CheckpointError(f"{snapshot.target} was not saved: {error.strerror}") from error
        if free < snapshot.bytes + SPARE_DISK:
            sizes = f"it needs {snapshot.bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            raise CheckpointError(f"{snapshot.target} was not saved: {sizes}; free some or lower keep_last_n_ckpts")

    def _tidy_up(self, run_id: str) -> None:
        """Remove older checkpoints beyond `keep`, and the training state of all but the newest. Never fails."""
        try:
            while self.keep and len(self.saved) > self.keep:
                oldest = self.saved.pop(0)
                remove_single_files(oldest)
                _remove_ema(oldest, run_id)
                remove_folder(oldest)
            for older in [] if self.keep_states else self.saved[:-1]:
                for name in STATE_FILES:  # the first of them is what makes a checkpoint resumable
                    (older / name).unlink(missing_ok=True)
        except OSError:
            pass  # what is left over does no harm


def unused(path: Path, run_id: str) -> Path:
    """The path, or with -2, -3, ... behind it where another checkpoint has it, its EMA, or a single file."""
    for number in itertools.count(1):
        candidate = path.with_name(f"{path.name}-{number}" if number > 1 else path.name)
        ema = ema_folder(candidate)
        free = not candidate.exists() and not single_file(candidate).exists()
        if free and (not ema.exists() or _is_ema_of(ema, run_id)):
            return candidate
    raise AssertionError("itertools.count never ends")


def _is_ema_of(folder: Path, run_id: str) -> bool:
    """Whether a folder is the average beside a checkpoint of this run."""
    try:
        return bool(read_manifest(folder).get(EMA_OF) == run_id)
    except CheckpointError:
        return False


def _remove_ema(checkpoint: Path, run_id: str) -> None:
    """Remove the average beside a checkpoint, unless it is another run's. Never fails."""
    folder = ema_folder(checkpoint)
    with suppress(OSError):
        if _is_ema_of(folder, run_id):
            remove_folder(folder)


def fits_in_memory(size: int) -> bool:
    """Whether a copy of so many bytes leaves enough memory free."""
    return int(psutil.virtual_memory().available) > size + SPARE_MEMORY


def checkpoints_of(run_id: str, folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; whole by the sizes of their files, for reading all takes long."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(".") or path.is_symlink() or not (path / MANIFEST).is_file():
            continue  # what a link leads to is counted where it lies, or has been put out of the way
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            continue
        saved_ns, files = manifest.get("saved_ns"), manifest["files"]
        whole = all(_has_size(path / name, files[name]["size"]) for name in files if name not in STATE_FILES)
        if whole and manifest.get("run_id") == run_id and is_count(saved_ns):
            found.append((saved_ns, path))
    return [path for _, path in sorted(found)]


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def manifest_header(project: str, run_id: str, run_folder: Path) -> dict[str, Any]:
    """What every manifest of a run begins with."""
    return {
        "project_name": project,
        "run_id": run_id,
        "run_folder": str(run_folder),
        "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "saved_ns": time.time_ns(),
    }
