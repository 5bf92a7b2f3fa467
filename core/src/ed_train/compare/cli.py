"""The ``ed-compare`` command."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ed_train.cli import FAILED as EXIT_FAILED
from ed_train.cli import OK, fail, leave_with
from ed_train.errors import ConfigError, EdTrainError


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    0: all runs were finished, if only to diverge; 1: one failed; 2: wrong input; 130 and 143: interrupted.
    """
    as_json = "--json" in argv
    try:
        return _compare(argv)
    except EdTrainError as error:
        return fail(error, as_json=as_json)


def _compare(argv: Sequence[str]) -> int:
    from ed_train.compare.arguments import parse
    from ed_train.compare.collect import collect
    from ed_train.compare.folder import FAILED, places, stray
    from ed_train.compare.members import make_members, with_validation
    from ed_train.compare.report import write_report
    from ed_train.compare.runner import Progress, Stop, run_members
    from ed_train.compare.seeds import group_lines, groups_as_json, with_seeds
    from ed_train.compare.summary import as_json, summarize, table_lines
    from ed_train.config.load import load_config
    from ed_train.registry import load_registry

    given = parse(argv)
    registry = load_registry(given.runs.without)
    config_file = Path(given.runs.config) if given.runs.config else None
    run = load_config(given.runs.flags, registry, config_file)
    run = with_validation(run)
    members, notes = make_members(run, given.optimizers, given.grid, registry, given.runs.flags, config_file)
    members = with_seeds(members, given.seeds)
    train = run.train
    folder = Path(given.folder or Path(train.logdir) / (train.run_name or f"{train.project_name}_compare")).absolute()
    if given.folder and train.run_name:
        notes.append(f"run_name ({run.sources['run_name']}) has no effect: --folder says where the runs lie")
    try:
        found = places(folder, members)
    except ConfigError as error:
        raise run.located(error) from error
    say = Progress()
    for note in dict.fromkeys((*run.notes, *notes)):
        say.line(f"note: {note}")
    with _locked(folder), Stop().installed() as stop:
        run_members(found, say, given.runs.without, stop)
        summary = summarize(members, [collect(place) for place in found])
        say.line("")
        report = write_report(folder, summary, found, run, stray(folder, found))
    if given.json:
        from ed_train.commands.as_json import print_json

        print_json({**as_json(summary), "seeds": groups_as_json(summary), "report": str(report)})
    else:
        print("\n".join([*table_lines(summary), *group_lines(summary), f"report: {report}"]))
    if stop.number:
        say.line(f"stopped; go on with the same command: ed-compare {shlex.join(argv)}")
        return 128 + stop.number
    return EXIT_FAILED if any(place.state.status == FAILED for place in found) else OK


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The comparison's folder, for this process alone. Raises EdTrainError."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise EdTrainError(
            f"{folder} is in use by another ed-compare; end that one, or give another --folder"
        ) from None
    except OSError as error:
        raise EdTrainError(f"--folder: {folder} cannot be written to: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def entry_point() -> NoReturn:
    """The console script."""
    leave_with(main)
