"""Put a run back to where its checkpoint was saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ed_train.config.changes import changes_since
from ed_train.config.resume import ResumePoint, check_fields
from ed_train.config.run import RunConfig
from ed_train.data.loader import BatchLoader
from ed_train.errors import CheckpointError, ConfigError, Problem
from ed_train.models.atomic import MANIFEST, read_manifest
from ed_train.train.components import TrainedComponent
from ed_train.train.foreign_state import load_foreign_state
from ed_train.train.optimizer_state import restore_optimizer

WHAT_TRAINS = ("clip_skip ", "disable_unet_training ", "disable_textenc_training ")


@dataclass(frozen=True)
class Position:
    """How far a run has come; see `Session` for the numbers."""

    step: int = 0
    epoch: int = 0
    batches_done: int = 0
    batch_number: int = 0
    notes: tuple[str, ...] = ()


BEGINNING = Position()


def find_position(run: RunConfig, loader: BatchLoader, processes: int) -> Position:
    """Where the run goes on: exactly behind its checkpoint, if the epoch's batches are still the same.

    If pictures, captions, batch size or number of processes have changed them, the epoch begins anew.
    """
    if run.resume is None:
        return BEGINNING
    manifest = run.resume.manifest
    step, epoch, done = manifest["step"], manifest["epoch"], manifest["batches_done"]
    where = f"step {step}, epoch {epoch + 1}"
    notes = [f"goes on at {where}, from {run.resume.checkpoint}"]
    if (before := manifest.get("processes", processes)) != processes:
        notes.append(f"changed since the checkpoint: processes {before} -> {processes}")
    if epoch < run.train.max_epochs and loader.fingerprint(epoch) != manifest["data"]:
        changed = "pictures, captions or settings that decide about them have changed"
        anew = f"; epoch {epoch + 1} begins anew" if done else ""
        notes.append(f"the batches are not those of the checkpoint: {changed}{anew}")
        done = 0
    return Position(step, epoch, done, manifest["batch_number"], tuple(notes))


def restore_optimizers(run: RunConfig, components: Sequence[TrainedComponent], folder: Path | None) -> list[str]:
    """Give new optimizers the state that a checkpoint, or the folder of the model, has for them.

    Args:
        run: says whether a run goes on.
        components: with their optimizers and schedules as they are at step 0.
        folder: of the model's files, if it is a folder.

    Returns:
        Lines about what was loaded and what was not.

    Raises:
        ConfigError: the state of a checkpoint to be resumed does not fit; a file wants to run foreign code.
        CheckpointError: it cannot be read.
    """
    if run.resume:
        return resume_optimizers(run, run.resume, components)
    notes: list[str] = []
    for component in components:
        if folder:
            note = load_foreign_state(component, folder, _own_manifest(folder))
            notes += [note] if note else []
            component.set_schedule(0)
    return notes


def resume_optimizers(
    run: RunConfig, resume: ResumePoint, components: Sequence[TrainedComponent], *, load: bool = True
) -> list[str]:
    """Give new optimizers the state of the checkpoint; with `load` off only see whether it fits.

    Returns:
        Lines about what is not as it was.

    Raises:
        ConfigError: states do not fit; of all components, and with the settings that decide about what trains.
        CheckpointError: one cannot be read.
    """
    checkpoint, manifest, changed = resume.checkpoint, resume.manifest, run.train.resume_changed
    notes: list[str] = []
    problems: list[Problem] = []
    for component in components:
        try:
            notes += restore_optimizer(component, checkpoint, manifest, changed=changed, load=load)
        except ConfigError as error:
            problems += error.problems
    if problems:
        why = [line for line in changes_since(run) if line.startswith(WHAT_TRAINS) or "_freezing." in line]
        cause = f"; changed since the checkpoint: {', '.join(why)}" if why else ""
        raise ConfigError(replace(problem, message=f"{problem.message}{cause}") for problem in problems)
    return notes


def _own_manifest(folder: Path) -> dict[str, object] | None:
    """The manifest of a folder, if it is a checkpoint of ours."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        check_fields(folder, manifest)
    except CheckpointError:
        return None
    return manifest
