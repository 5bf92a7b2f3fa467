"""The ``ed-train`` command. Everything up to a valid configuration runs without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from ed_train.errors import ConfigError, EdTrainError

if TYPE_CHECKING:
    from ed_train.config.run import RunConfig

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
LISTING = {"--list-optimizers", "--json"}


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    0 is success, 1 a run that failed, 2 wrong input, 130 an interruption from the keyboard.
    """
    run: RunConfig | None = None
    try:
        if "--list-optimizers" in argv and LISTING.issuperset(argv):  # must stay instant: argparse would cost 6 ms
            return _list_optimizers("--json" in argv)
        from ed_train.commands.arguments import parse_arguments

        arguments = parse_arguments(argv)
        if arguments.list_optimizers:
            return _list_optimizers(arguments.json)
        from pathlib import Path

        from ed_train.config.load import load_config
        from ed_train.registry import load_registry

        config_file = Path(arguments.config) if arguments.config else None
        run = load_config(arguments.flags, load_registry(), config_file)
        from ed_train.commands.processes import start_cpu_processes

        start_cpu_processes(argv)
        from ed_train.train.train import train

        train(run)
    except ConfigError as error:
        return _fail(run.located(error) if run else error, WRONG_INPUT)
    except EdTrainError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        print("ed-train: interrupted", file=sys.stderr)
        return INTERRUPTED
    return OK


def _list_optimizers(as_json: bool) -> int:
    from ed_train.commands.list_optimizers import list_optimizers

    list_optimizers(as_json=as_json)
    return OK


def _fail(error: EdTrainError, status: int) -> int:
    lines = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return status


def entry_point() -> NoReturn:
    """The console script."""
    try:
        try:
            status = main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as head, is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status)
