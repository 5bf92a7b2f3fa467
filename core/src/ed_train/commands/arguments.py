"""The command line: every train.json key is a flag, and a few flags are commands of their own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import NoReturn

from ed_train import __version__
from ed_train.errors import ConfigError, Problem

USAGE = "ed-train [--config train.json] [--KEY VALUE ...]\n       ed-train --list-optimizers [--json]"
EPILOG = """\
Every key of train.json is a flag; a flag wins over the file. Switches take true or false, and mean true without either.
Hyphens and underscores are the same in flags. Example:

  ed-train --config train.json --optimizer_config optimizer.json --max_epochs 10

Several GPUs or processes: accelerate launch -m ed_train --config train.json
"""


@dataclass(frozen=True)
class Arguments:
    """The parsed command line; `flags` holds the train.json keys that were given, as texts."""

    config: str | None
    list_optimizers: bool
    json: bool
    flags: dict[str, str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([Problem("command line", "", f"{message}; see ed-train --help")])


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse the command line.

    Raises:
        ConfigError: an unknown flag, with the nearest known one, or a flag without its value.
    """
    parser = _Parser(
        "ed-train", usage=USAGE, epilog=EPILOG, allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=120),
        description="Fine-tune Stable Diffusion; every optimizer is a plugin.",
    )  # fmt: skip
    commands = parser.add_argument_group("commands and files")
    commands.add_argument("-h", "--help", action="help", help="show this text and exit")
    commands.add_argument("--version", action="version", version=f"ed-train {__version__}", help="show the version")
    commands.add_argument("--config", metavar="FILE", help="train.json: the settings of the run")
    commands.add_argument("--list-optimizers", action="store_true", help="show the installed optimizers and exit")
    commands.add_argument("--json", action="store_true", help="with --list-optimizers: as JSON")
    _add_train_keys(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    arguments, unknown = parser.parse_known_args([_spelled_as_known(a, known) for a in argv])
    if unknown:
        names = [a.partition("=")[0] for a in unknown]
        flags = [name for name in names if name.startswith("-")]  # anything else is probably the value of one of them
        raise ConfigError([Problem(name, "", _unknown(name, known)) for name in flags or names])
    values = vars(arguments)
    own = {f.name: values.pop(f.name, None) for f in fields(Arguments) if f.name != "flags"}
    if own["json"] and not own["list_optimizers"]:
        raise ConfigError([Problem("--json", "", "goes with --list-optimizers only")])
    return Arguments(own["config"], bool(own["list_optimizers"]), bool(own["json"]), values)


def _add_train_keys(parser: argparse.ArgumentParser) -> None:
    from ed_train.config.describe import annotations_of, default_of, find_metadata, help_of, leaf_types, show
    from ed_train.config.train_keys import Group, TrainConfig

    group = None
    for key, annotation in annotations_of(TrainConfig).items():
        if title := find_metadata(annotation, Group):
            group = parser.add_argument_group(title.title)
        default = default_of(TrainConfig, key)
        text = help_of(annotation)
        if text and default is not None and default is not False:
            text += f" (default: {show(default)})"
        switch = {"nargs": "?", "const": "true"} if bool in leaf_types(annotation) else {}
        (group or parser).add_argument(f"--{key}", metavar="VALUE", help=text.replace("%", "%%"), **switch)  # type: ignore[arg-type]


def _spelled_as_known(argument: str, known: set[str]) -> str:
    """``--max-epochs`` as ``--max_epochs``, ``--list_optimizers`` as ``--list-optimizers``."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    by_spelling = {flag.replace("_", "-"): flag for flag in known}
    return by_spelling.get(name.replace("_", "-"), name) + equals + value


def _unknown(flag: str, known: set[str]) -> str:
    if not flag.startswith("-"):
        return f"not a flag; did you mean --config {flag}?" if flag.endswith(".json") else "not a flag"
    close = get_close_matches(flag.replace("-", "_"), {k.replace("-", "_") for k in known}, n=1)
    spelling = next((k for k in known if close and k.replace("-", "_") == close[0]), None)
    return f"unknown flag; did you mean {spelling}?" if spelling else "unknown flag; see ed-train --help"
