"""Find the checkpoint to go on from, and see that it is whole. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ed_train.config.checks import find_input
from ed_train.config.describe import show
from ed_train.errors import CheckpointError

LATEST = "latest"
FIND_LAST = "findlast"
"""The old spelling of ``"resume": "latest"``, as resume_ckpt."""
RECORD_FILE = "run.json"
STATE_FILE = "training_state.pt"
EMA_FILE = "ema.safetensors"
STATE_FILES = (STATE_FILE, "optimizer_unet.pt", "optimizer_te.pt", EMA_FILE)
"""What only a resume needs. An older checkpoint may have lost them again, `STATE_FILE` first."""
_COUNTS = ("step", "epoch", "batches_done", "batch_number", "saved_ns")
_TEXTS = ("project_name", "run_id", "run_folder", "data")


@dataclass(frozen=True)
class ResumePoint:
    """A whole checkpoint with training state.

    Attributes:
        checkpoint: its folder.
        manifest: what it says about itself: step, epoch, optimizers, the configuration of its run, files.
        folder: the folder of the run that it belongs to; None if that is gone.
    """

    checkpoint: Path
    manifest: Mapping[str, Any]
    folder: Path | None

    @property
    def run(self) -> Mapping[str, Any]:
        """The sections of the run.json of its run."""
        run: Mapping[str, Any] = self.manifest["run"]
        return run


def find_latest(
    logdir: Path, extra: Path | None, project: str | None, *, verify: bool = True
) -> tuple[ResumePoint | None, list[str]]:
    """The newest checkpoint of a project that is whole and has training state.

    Args:
        logdir: the folder of the runs; checkpoints lie in ``RUN/ckpts``.
        extra: save_ckpt_dir, if there is one.
        project: project_name; a folder of runs may have several. None for any.
        verify: whether to compare the files with their checksums, which reads all of them.

    Returns:
        It, or None if there is none, and a line for each newer one that had to be passed over.
    """
    while True:
        before, unread = _stand(logdir, extra)
        point, notes = _search(before, project, verify)
        if _stand(logdir, extra) == (before, unread):
            return point, [*unread, *notes]
        # a run that is still going has saved meanwhile: what it removed is not damaged, nor is an older one the latest


def find_named(value: str, base: Path, *, verify: bool = True) -> tuple[ResumePoint | None, str]:
    """The checkpoint of that path, or None and why it cannot be resumed; `verify` as in `find_latest`."""
    if value.lower() in (LATEST, FIND_LAST, ""):
        return None, f"got {show(value)}; expected {show(LATEST)} or the folder of a checkpoint"
    path, message = find_input(value, base)
    if path is None:
        return None, message
    if message := not_a_checkpoint(path):
        return None, message
    if path.is_file():
        hint = "a file holds a model alone: begin a new run from it with resume_ckpt"
        return None, f"{path} is a file; expected a checkpoint's folder; {hint}"
    try:
        return _checked(path, verify), ""
    except CheckpointError as error:
        return None, str(error)
    except OSError as error:
        return None, _unreadable(error)


def not_a_checkpoint(path: Path) -> str:
    """What a path is that a checkpoint is expected at: something half written, or a folder of several; else empty."""
    from ed_train.models.atomic import MANIFEST, is_partial

    if is_partial(path):
        return f"{path} was never finished: what saved it has ended before; expected a checkpoint"
    try:
        inner = [p for p in (path / "ckpts", path) if p.is_dir() and p.name == "ckpts"]
        if inner:
            names = ", ".join(sorted(p.name for p in inner[0].iterdir() if not p.name.startswith("."))[:5])
            return f"{path} is the folder of a run; expected one of its checkpoints: {names or 'it has none'}"
        if path.is_dir() and any(path.glob("*/ckpts")):
            return f"{path} is a folder of runs; expected a checkpoint in one of them, RUN/ckpts/NAME"
        part = (path.parent / MANIFEST).is_file()
        return f"{path} is a part of a checkpoint; expected {path.parent}" if part else ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def _stand(logdir: Path, extra: Path | None) -> tuple[dict[Path, bool], list[str]]:
    """Whatever may be a checkpoint, and whether it has training state now; a line for each folder that is not read."""
    notes: list[str] = []
    parents = {*(run / "ckpts" for run in _folders(logdir, notes)), *([extra] if extra else [])}
    found = {}
    for path in (path for parent in sorted(parents) for path in _folders(parent, notes)):
        with suppress(OSError):
            found[path] = False
            found[path] = (path / STATE_FILE).exists()
    return found, notes


def _folders(parent: Path, notes: list[str]) -> list[Path]:
    """The folders in a folder, none where there is no such; adds a line if it may not be read."""
    try:
        return [path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        notes.append(f"passed over: {_unreadable(error)}")
        return []


def _unreadable(error: OSError) -> str:
    return f"{error.filename} cannot be read: {error.strerror}"


def _search(folders: Iterable[Path], project: str | None, verify: bool) -> tuple[ResumePoint | None, list[str]]:
    """`find_latest` among these folders, at one moment."""
    notes: list[str] = []
    for folder in _newest_first(folders, project, notes):
        try:
            return _checked(folder, verify), notes
        except CheckpointError as error:
            notes.append(f"passed over: {error}")
    return None, notes


def _newest_first(folders: Iterable[Path], project: str | None, notes: list[str]) -> list[Path]:
    """Checkpoints of a project by the time at which they were saved; a line for what cannot tell."""
    from ed_train.models.atomic import MANIFEST, read_manifest

    found = []
    for folder in folders:
        try:
            if not (folder / MANIFEST).exists() and not any(folder.glob("*/config.json")):
                continue  # no checkpoint, and none that was damaged
            manifest = read_manifest(folder)
            if project in (None, manifest.get("project_name")) and _has_state(folder, manifest):
                check_fields(folder, manifest)
                found.append((manifest["saved_ns"], manifest["step"], folder))
        except CheckpointError as error:
            notes.append(f"passed over: {error}")
        except OSError as error:
            notes.append(f"passed over: {_unreadable(error)}")
    return [folder for *_, folder in sorted(found, reverse=True)]


def _has_state(folder: Path, manifest: Mapping[str, Any]) -> bool:
    return STATE_FILE in manifest["files"] and (folder / STATE_FILE).exists()


def _checked(folder: Path, verify: bool) -> ResumePoint:
    """Raises CheckpointError if the folder is no whole checkpoint with training state."""
    from ed_train.models.atomic import check_files, read_manifest

    manifest = read_manifest(folder)
    if not _has_state(folder, manifest):
        why = "it was removed when a newer one was saved" if STATE_FILE in manifest["files"] else "it was saved without"
        advice = "resume_ckpt begins a new run from its weights; save_optimizer keeps the state in every checkpoint"
        raise CheckpointError(f"{folder} has no training state: {why}; {advice}")
    check_fields(folder, manifest)
    if verify:
        check_files(folder, manifest)
    return ResumePoint(folder, manifest, _run_folder(folder, manifest))


def _run_folder(checkpoint: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The folder of a checkpoint's run: that around it, since it may have been moved or copied, or the recorded one."""
    recorded, around = Path(manifest["run_folder"]), checkpoint.resolve().parent
    known = recorded.is_dir() and recorded != Path()
    if around.name == "ckpts" and (around.parent / RECORD_FILE).is_file():
        return recorded if known and recorded.samefile(around.parent) else around.parent
    return recorded if known else None


def check_fields(folder: Path, manifest: Mapping[str, Any]) -> None:
    """See that a manifest says all that a resume reads: another program may have written it, checksum and all.

    Raises:
        CheckpointError: names the fields that are missing or of another type.
    """
    from ed_train.config.ema import EMA_RECORD
    from ed_train.models.atomic import MANIFEST

    run, records, average = (manifest.get(key) for key in ("run", "optimizers", EMA_RECORD))
    wrong = [f"{key} {show(manifest.get(key))}" for key in _COUNTS if not is_count(manifest.get(key))]
    wrong += [f"{key} {show(manifest.get(key))}" for key in _TEXTS if not isinstance(manifest.get(key), str)]
    wrong += [] if isinstance(run, dict) and _is_configuration(run) else ["run"]
    wrong += [] if isinstance(records, dict) and all(map(_is_optimizer, records.values())) else ["optimizers"]
    if average is not None and not (isinstance(average, dict) and is_count(average.get("begun"))):
        wrong.append(EMA_RECORD)
    if wrong:
        raise CheckpointError(f"{folder / MANIFEST} is not as ed-train writes it; unusable: {', '.join(wrong)}")


def is_count(value: object) -> bool:
    """Whether a JSON value is a whole number from 0."""
    return type(value) is int and value >= 0  # True is an int, too


def _is_configuration(run: Mapping[str, Any]) -> bool:
    train, optimizer = run.get("train"), run.get("optimizer")
    if not isinstance(train, dict) or not isinstance(optimizer, dict):
        return False
    own = optimizer.get("text_encoder_overrides")
    return isinstance(optimizer.get("base"), dict) and (own is None or isinstance(own, dict))


def _is_optimizer(record: object) -> bool:
    """Whether it is an `optimizer_record`."""
    if not isinstance(record, dict):
        return False
    names, shapes = record.get("parameters"), record.get("shapes")
    return (
        all(isinstance(record.get(key), str) for key in ("optimizer", "distribution", "version"))
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(shapes, list)
        and len(shapes) == len(names)
        and all(isinstance(shape, list) and all(map(is_count, shape)) for shape in shapes)
    )
