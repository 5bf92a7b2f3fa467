"""The weights with the lowest validation loss of a run: kept beside its checkpoints, whatever becomes of those.

They are a diffusers folder with a manifest, without training state and without a ``run_id``: no resume takes them for a
checkpoint, and ``keep_last_n_ckpts`` does not count them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ed_train.config.ema import ema_folder
from ed_train.errors import CheckpointError
from ed_train.models.atomic import read_manifest, remove_folder
from ed_train.train.single_files import remove_single_files
from ed_train.train.state import size_of

if TYPE_CHECKING:
    from ed_train.train.checkpoint import Snapshot
    from ed_train.train.session import Session

BEST_OF = "best_of"
"""The key of the manifest under which it says of which run it is, and by which set and loss."""


@dataclass(frozen=True)
class Best:
    """What is kept.

    Attributes:
        path: its folder.
        name: of the set that decides.
        loss: of that set.
        step: the optimizer steps after which it was that.
    """

    path: Path
    name: str
    loss: float
    step: int


def keep_best(session: Session, name: str, fingerprint: str, loss: float) -> None:
    """Write the weights as they are now, in place of those that the run has kept until now.

    Args:
        session: its modules and optimizers are in evaluation mode, with the weights that train.
        name: of the set that decides.
        fingerprint: of that set: losses of other pictures, or under other settings, cannot be compared.
        loss: of that set.
    """
    from ed_train.train.checkpoint import unused

    output = session.output
    if output is None:
        return
    best_of = {"run_id": output.run_id, "set": name, "fingerprint": fingerprint, "loss": loss}

    def take(copy: bool) -> Snapshot:
        snapshot = output.snapshot(session, None, copy=copy, last=False)
        target = output.writer.folder / f"best-{session.run.train.project_name}-{session.place}"
        manifest = {key: value for key, value in snapshot.manifest.items() if key != "run_id"}
        return replace(snapshot, target=unused(target, output.run_id), manifest={**manifest, BEST_OF: best_of})

    size = sum(size_of(c.module.state_dict()) for c in session.components)
    size += size_of(session.ema.averages) if session.ema else 0
    output.save_best(session, size, take)


def find_best(folder: Path, run_id: str, fingerprint: str) -> Best | None:
    """The best that a run has kept so far, by the same set; of two, which a crash may leave, the lower."""
    found = []
    for path, about in _bests(folder, run_id, fingerprint):
        loss, step = about.get("loss"), about.get("step")
        if isinstance(loss, float) and isinstance(step, int):
            found.append(Best(path, str(about.get("set")), loss, step))
    return min(found, key=lambda best: (best.loss, best.step), default=None)


def remove_other_bests(kept: Path, best_of: Mapping[str, Any]) -> None:
    """Remove what a better one replaces, with its average. Never fails.

    Args:
        kept: the folder that stays.
        best_of: what its manifest says; only what was compared by the same set goes.
    """
    for path, _ in _bests(kept.parent, best_of["run_id"], best_of["fingerprint"]):
        if path != kept:
            with suppress(OSError):
                remove_single_files(path)
            for folder in (ema_folder(path), path):
                with suppress(OSError):
                    remove_folder(folder)


def _bests(folder: Path, run_id: str, fingerprint: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders that a run has kept by a set, with what their manifests say about it, and the step."""
    for path in sorted(folder.glob("best-*")) if folder.is_dir() else ():
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            continue
        about = manifest.get(BEST_OF)
        if isinstance(about, dict) and (about.get("run_id"), about.get("fingerprint")) == (run_id, fingerprint):
            yield path, {**about, "step": manifest.get("step")}
