"""The folder of a comparison: a folder for each of its runs, named by content, so that what is finished is found again.

FOLDER/report.html, *.png, results.json
FOLDER/runs/lion-1f2e3d4c/config.json   what ed-train is given; state.json; output.txt
FOLDER/runs/lion-1f2e3d4c/lion          the run's own folder
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ed_train import __version__
from ed_train.compare.members import Member
from ed_train.config.record import configuration_of
from ed_train.config.run import RunConfig
from ed_train.data.files import write_atomic

WAITING, RUNNING, DONE, DIVERGED, FAILED, INTERRUPTED, UNUSABLE = (
    "waiting", "running", "done", "diverged", "failed", "interrupted", "unusable",
)  # fmt: skip
FINISHED = (DONE, DIVERGED)
"""States that a run keeps when the comparison is started again."""
_NOT_COMPARED = ("logdir", "run_name", "save_ckpt_dir", "cache_dir", "wandb", "required_plugins", "gpuid")
"""Settings that change nothing about what is learnt."""


@dataclass
class State:
    """What has become of a member's run.

    Attributes:
        status: one of the constants above.
        reason: why it failed or diverged, in a line.
        seconds: of all its processes together, from start to end.
        attempts: how many there were.
        run: name of the newest one's folder; an attempt that ended before its first checkpoint leaves one, too.
    """

    status: str = WAITING
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 0
    run: str = ""


@dataclass
class Place:
    """Where a member's run lies, and its state."""

    member: Member
    folder: Path
    state: State = field(default_factory=State)

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def output(self) -> Path:
        """What its processes have printed."""
        return self.folder / "output.txt"

    @property
    def run_folder(self) -> Path | None:
        """The folder of ed-train's run, if it came to make one."""
        return self.folder / self.state.run if self.state.run and (self.folder / self.state.run).is_dir() else None

    def keep(self) -> None:
        """Write the state down."""
        write_atomic(self.folder / "state.json", (json.dumps(asdict(self.state), indent=2) + "\n").encode())

    @property
    def record(self) -> dict[str, Any]:
        """The run.json that ed-train is given."""
        train = self.member.run.train
        checkpoints = str(Path(train.save_ckpt_dir) / self.folder.name) if train.save_ckpt_dir else None
        train = replace(train, logdir=str(self.folder), run_name=_slug(self.member.label), save_ckpt_dir=checkpoints)
        return configuration_of(replace(self.member.run, train=train))


def places(folder: Path, members: Sequence[Member]) -> list[Place]:
    """Where each member lies, with the state that an earlier start has left; nothing is written."""
    stamp = inputs_stamp(members[0].run)
    found = []
    for member in members:
        place = Place(member, folder / "runs" / f"{_slug(member.label)}-{_key(member.run, stamp)}")
        place.state = _read_state(place.folder / "state.json")
        if member.unusable:
            place.state = State(UNUSABLE, member.unusable)
        elif place.state.status == RUNNING:  # and nothing is left of who ran it
            place.state.status = INTERRUPTED
        found.append(place)
    return found


def prepare(place: Place) -> None:
    """Make a member's folder, with what ed-train is given. Raises OSError."""
    place.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(place.record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(place.config, text.encode())


def inputs_stamp(run: RunConfig) -> str:
    """A hash over the pictures' names, sizes, times and captions, those of validation too, and the model's files.

    Raises:
        ConfigError: there is nothing to train with.
    """
    from ed_train.data.scan import scan_dataset

    folders = [run.train.data_root, *(run.validation.config.folders.values() if run.validation else ())]
    items = []
    for root in map(Path, folders):
        dataset = scan_dataset(root, flip_p=run.train.flip_p, cond_dropout=run.train.cond_dropout)
        items += [(*_file(item.path, root), asdict(replace(item, path=Path()))) for item in dataset.items]
    return _digest([items, list(_files(Path(run.model.location)))])


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    """A model's files; nothing for a name on the hub."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            yield _file(file, path)


def _file(file: Path, root: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns


def _key(run: RunConfig, stamp: str) -> str:
    """Eight hexadecimal digits over everything that decides what the run learns."""
    content = configuration_of(run)
    content["train"] = {key: value for key, value in content["train"].items() if key not in _NOT_COMPARED}
    optimizers = {c.optimizer.distribution: c.optimizer.version for c in run.components.values()}
    libraries = {c.optimizer.spec.library: _version(c.optimizer.spec.library) for c in run.components.values()}
    return _digest([content, optimizers, libraries, __version__, _version("torch"), stamp])[:8]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution) if distribution else None
    except PackageNotFoundError:
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", label).strip("-._+")[:60] or "run"


def _read_state(path: Path) -> State:
    """The state that was written down; a damaged one counts as none."""
    try:
        content = json.loads(path.read_bytes())
        state = State(**content)
        valid = all(isinstance(text, str) for text in (state.status, state.reason, state.run))
        return replace(state, seconds=float(state.seconds), attempts=int(state.attempts)) if valid else State()
    except (OSError, ValueError, TypeError):
        return State()


def stray(folder: Path, current: Iterable[Place]) -> list[str]:
    """Names of runs of earlier settings, which are kept."""
    names = {place.folder.name for place in current}
    runs = folder / "runs"
    return sorted(path.name for path in runs.iterdir() if path.name not in names) if runs.is_dir() else []
