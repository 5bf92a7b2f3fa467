"""The ``ed-train`` command. Everything up to a valid configuration runs without torch."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from ed_train.errors import ConfigError, EdTrainError, Problem

if TYPE_CHECKING:
    from ed_train.commands.arguments import Arguments
    from ed_train.config.run import RunConfig
    from ed_train.registry import OptimizerRegistry

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
LISTING = {"--list-optimizers", "--json"}
WITHOUT_RUN = {"list_optimizers", "describe_optimizer", "schema", "new_plugin", "export", "clear_cache"}


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    0 is success, 1 a run that failed, 2 wrong input, 129, 130 and 143 an interruption by SIGHUP, SIGINT
    or SIGTERM.
    """
    arguments: Arguments | None = None
    run: RunConfig | None = None
    try:
        if "--list-optimizers" in argv and LISTING.issuperset(argv):  # must stay instant: argparse would cost 6 ms
            gc.disable()  # 5 % of its time, and it ends at once
            return _list_optimizers((), "--json" in argv)
        from ed_train.commands.arguments import parse_arguments

        arguments = parse_arguments(argv)
        if arguments.command in WITHOUT_RUN:
            return _run_command(arguments)
        from dataclasses import replace
        from pathlib import Path

        from ed_train.config.load import load_config
        from ed_train.registry import load_registry

        registry = load_registry(arguments.without)
        config_file = Path(arguments.config) if arguments.config else None
        run = load_config(arguments.flags, registry, config_file, to_train=arguments.command != "plan_memory")
        run = replace(run, notes=(*arguments.notes, *run.notes))
        if arguments.command != "plan_memory":
            from ed_train.commands.processes import start_cpu_processes

            start_cpu_processes(argv)
        if arguments.command:
            return _show_run(arguments, run, registry)
        from ed_train.train.train import train

        train(run)
    except EdTrainError as error:
        located = run.located(error) if run and isinstance(error, ConfigError) else error
        return fail(located, as_json=bool(arguments and arguments.json))
    except KeyboardInterrupt:
        print("ed-train: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:
        if number := getattr(error, "interrupted_by", 0):
            print(f"ed-train: {error}", file=sys.stderr)
            return 128 + int(number)
        raise
    return OK


def _run_command(arguments: Arguments) -> int:
    """A command that needs no configuration. Each lies in a module of its own, imported when it is needed."""
    if arguments.command == "list_optimizers":
        return _list_optimizers(arguments.without, arguments.json)
    if arguments.command == "new_plugin":
        from ed_train.commands.new_plugin import new_plugin

        new_plugin(*arguments.operands)
        return OK
    if arguments.command == "clear_cache":
        from ed_train.commands.clear_cache import clear_cache

        clear_cache(arguments)
        return OK
    if arguments.command == "export":
        from ed_train.commands.export import export_command

        export_command(arguments)
        return OK
    from ed_train.registry import load_registry

    registry = load_registry(arguments.without)
    if arguments.command == "describe_optimizer":
        from ed_train.commands.describe_optimizer import describe_optimizer

        describe_optimizer(arguments.operands[0], registry, as_json=arguments.json)
    else:
        from ed_train.commands.schema import print_schema

        print_schema(arguments.operands[0], registry)
    return OK


def _show_run(arguments: Arguments, run: RunConfig, registry: OptimizerRegistry) -> int:
    """A command that shows what a configuration comes to."""
    if arguments.command == "check":
        from ed_train.commands.check import check

        check(run, as_json=arguments.json)
    else:
        from ed_train.commands.plan_memory import plan_memory

        plan_memory(run, registry, as_json=arguments.json)
    return OK


def _list_optimizers(without: Sequence[str], as_json: bool) -> int:
    from ed_train.commands.list_optimizers import list_optimizers
    from ed_train.registry import load_registry

    list_optimizers(load_registry(without), as_json=as_json)
    return OK


def fail(error: EdTrainError, *, as_json: bool) -> int:
    """Print what went wrong, a line for each problem, and return the exit status."""
    status, problems = FAILED, [Problem("", "", line) for line in str(error).splitlines()]
    if isinstance(error, ConfigError):
        status, problems = WRONG_INPUT, list(error.problems)
    if as_json:
        from ed_train.commands.as_json import print_json

        print_json({"errors": [vars(problem) for problem in problems]})
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return status


def entry_point() -> NoReturn:
    """The console script."""
    leave_with(main)


def leave_with(command: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command with this process's arguments and exit with its status, also where nothing can be printed."""
    status = FAILED
    _open_standard_streams()
    try:
        try:
            status = command(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except OSError as error:
        if not _lost_output():
            raise
        if isinstance(error, BrokenPipeError):  # whoever read the output, such as head, is gone
            status = FAILED
        else:  # what the command was for may have been done all the same
            print(f"ed-train: the output could not be written: {error.strerror}", file=sys.stderr)
    sys.exit(status)


def _open_standard_streams() -> None:
    """Stand in for standard streams that the caller has closed; else the next file that is opened takes their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # open to the end


def _lost_output() -> bool:
    """Whether nothing can be printed any more, as on a full disk; what is left of the output is then given up."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
