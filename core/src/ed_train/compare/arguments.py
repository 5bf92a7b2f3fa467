"""The command line of ``ed-compare``: a few flags of its own, and every flag of ``ed-train`` for the runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from ed_train import __version__
from ed_train.commands.arguments import Arguments, parse_arguments
from ed_train.compare.learning_rates import LearningRates, parse_grid
from ed_train.compare.seeds import FLAG as SEEDS
from ed_train.compare.seeds import parse_seeds
from ed_train.errors import ConfigError, Problem

DESCRIPTION = """\
Train the same run with several optimizers, one after the other, each in a process of its own, from the same seed on.
Writes report.html, pictures of its plots and results.json. Start it again to go on: what is finished is kept.
"""
EPILOG = """\
Every flag of ed-train sets the runs, too; ed-train --help shows them. Example:

  ed-compare --config train.json --optimizers adamw@1e-5,lion,prodigy,my_adamw.json --max_steps 500
"""
MANAGED = ("resume", "resume_changed")
"""Flags of ed-train that are set for each run."""


@dataclass(frozen=True)
class CompareArguments:
    """The parsed command line.

    Attributes:
        optimizers: as they were named; empty for all that can be used.
        grid: the learning rates to try.
        seeds: to run each with; empty for the one that is configured.
        folder: where everything is written; None for the default.
        json: whether to print the results as JSON.
        runs: the flags that set the runs.
    """

    optimizers: tuple[str, ...]
    grid: LearningRates
    seeds: tuple[int, ...]
    folder: str | None
    json: bool
    runs: Arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([Problem("command line", "", f"{message}; see ed-compare --help")])


def parse(argv: Sequence[str]) -> CompareArguments:
    """Parse the command line.

    Raises:
        ConfigError: an unknown flag, a flag without its value, or one that makes no sense here.
    """
    own, rest = _parser().parse_known_args([_spelled(argument) for argument in argv])
    runs = parse_arguments(rest)
    problems = [
        Problem(f"--{key}", "", "is set for each run by ed-compare itself: start it again, and it goes on")
        for key in MANAGED
        if key in runs.flags
    ]
    if runs.command:
        flag = f"--{runs.command.replace('_', '-')}"
        problems.append(Problem(flag, "", "is a command of ed-train, not a setting of the runs; leave it out"))
    names = tuple(name.strip() for name in (own.optimizers or "").split(",") if name.strip())
    if own.optimizers is not None and not names:
        problems.append(Problem("--optimizers", "", "got no name; expected some, e.g. adamw,lion,prodigy"))
    grid, found = parse_grid(own.lr_grid)
    seeds, wrong = parse_seeds(own.seeds)
    if own.seeds is not None and "seed" in runs.flags:
        wrong.append(Problem(SEEDS, "", "contradicts --seed, which is one for all; leave one of them out"))
    if problems := [*problems, *found, *wrong]:
        raise ConfigError(problems)
    return CompareArguments(names, grid, seeds, own.folder, own.json, runs)


def _parser() -> _Parser:
    parser = _Parser(
        "ed-compare", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        usage="ed-compare [--config train.json] [--optimizers NAME,...] [--lr-grid LR,...] [--seeds N,...] [--KEY ...]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=120),
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"ed-compare {__version__}", help="show the version")
    parser.add_argument(
        "--optimizers", metavar="NAME,...",
        help="names as in optimizer.json, with a learning rate as NAME@LR; or optimizer.json files. "
        "Without it: every installed one that this machine can run",
    )  # fmt: skip
    parser.add_argument(
        "--lr-grid", metavar="LR,...",
        help="a run for each: learning rates such as 1e-5,1e-4 (not for those that find theirs themselves), "
        "or multiples of each one's own such as 0.3x,1x,3x",
    )  # fmt: skip
    parser.add_argument(
        SEEDS, metavar="N,...", help="a run with each of these seeds, and the mean and spread of their losses"
    )
    parser.add_argument(
        "--folder", metavar="DIR", help="where everything is written; default: PROJECT_compare in logdir"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def _spelled(argument: str) -> str:
    """``--lr_grid`` as ``--lr-grid``."""
    name, equals, value = argument.partition("=")
    return "--lr-grid" + equals + value if name == "--lr_grid" else argument
