"""The command line: every train.json key is a flag, and a few flags are commands of their own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from ed_train import __version__
from ed_train.errors import ConfigError, Problem

USAGE = """\
ed-train [--config train.json] [--KEY VALUE ...]              train
       ed-train [--config train.json] [--KEY VALUE ...] --check       show what would happen
       ed-train [--config train.json] [--KEY VALUE ...] --plan-memory compare the optimizers' memory
       ed-train --list-optimizers | --describe-optimizer NAME         see what is installed
       ed-train --export FOLDER [FILE]                                a checkpoint as one file for other programs
       ed-train --schema optimizer|train|validation | --new-plugin NAME [DIR]    for editors, for authors"""
EPILOG = """\
Every key of train.json is a flag; a flag wins over the file. Switches take true or false, and mean true without either.
Hyphens and underscores are the same in flags. Example:

  ed-train --config train.json --optimizer_config optimizer.json --max_epochs 10

Several GPUs or processes: accelerate launch -m ed_train --config train.json
The same run with several optimizers in turn, and a report: ed-compare --help
"""

COMMANDS = (
    ("--check", None, 0, "show all settings with their sources, what trains and for how many steps; train nothing"),
    ("--plan-memory", None, 0, "show the memory that this run would need with each installed optimizer"),
    ("--list-optimizers", None, 0, "show the installed optimizers, and what cannot be used and why"),
    ("--describe-optimizer", "NAME", None, "show an optimizer's options, recommended settings and memory"),
    ("--export", ("FOLDER", "FILE"), "+", "write a checkpoint or diffusers folder as one .safetensors file"),
    ("--clear-cache", "DAYS", "?", "remove what is cached in cache_dir, or what no run has used for DAYS days"),
    ("--schema", "KIND", None, "print the JSON Schema of a file; KIND: optimizer, train or validation"),
    ("--new-plugin", ("NAME", "DIR"), "+", "write a working plugin of your own into DIR (default: ed-train-NAME)"),
)
_NEGATIVE = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)
WITHOUT_SETTINGS = ("list_optimizers", "describe_optimizer", "schema", "new_plugin")
WITH_JSON = ("list_optimizers", "describe_optimizer", "check", "plan_memory")


@dataclass(frozen=True)
class Arguments:
    """The parsed command line.

    Attributes:
        command: the command that was asked for instead of training, e.g. ``check``; empty to train.
        operands: what was given with it: a name, perhaps a folder.
        overwrite: whether what the command writes may exist.
        without: what ``--no-plugin`` names.
        flags: the train.json keys that were given, as texts.
        notes: a line for each flag that was given more than once.
    """

    config: str | None
    command: str
    operands: tuple[str, ...]
    json: bool
    overwrite: bool
    without: tuple[str, ...]
    flags: dict[str, str]
    notes: tuple[str, ...] = ()


class _Command(argparse.Action):
    """A flag that is a command of its own; one at a time."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if earlier := getattr(namespace, "command", None):
            flag = f"--{earlier[0].replace('_', '-')}"
            raise ConfigError([Problem(option or "", "", f"cannot be combined with {flag}; give one of them")])
        operands = [values] if isinstance(values, str) else values or []
        namespace.command = (self.dest, tuple(operands))


class _Value(argparse.Action):
    """A flag with a value; the last one counts, as everywhere, so that flags can be added to a script's own."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if (earlier := getattr(namespace, self.dest, values)) != values:
            notes = (
                *getattr(namespace, "notes", ()),
                f"{option} {values} overrides {option} {earlier}, given before it",
            )
            namespace.notes = notes
        setattr(namespace, self.dest, values)


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
    _add_commands(parser)
    _add_train_keys(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    arguments, unknown = parser.parse_known_args(_negatives_joined([_spelled_as_known(a, known) for a in argv], known))
    if unknown:
        names = [a.partition("=")[0] for a in unknown if a not in known]  # what stands behind -- is known perhaps
        flags = [name for name in names if name.startswith("-")]  # anything else is probably the value of one of them
        raise ConfigError([Problem(name or '""', "", _unknown(name, known)) for name in flags or names])
    values = vars(arguments)
    command, operands = values.pop("command", ("", ()))
    as_json = values.pop("json", False)
    if as_json and command not in WITH_JSON:
        raise ConfigError([Problem("--json", "", f"goes with {', '.join(map(_flag, WITH_JSON))} only")])
    overwrite = values.pop("overwrite", False)
    if overwrite and command != "export":
        raise ConfigError([Problem("--overwrite", "", "goes with --export only")])
    if command in ("new_plugin", "export") and len(operands) > 2:
        expected = "NAME [DIR]" if command == "new_plugin" else "FOLDER [FILE]"
        raise ConfigError([Problem(_flag(command), "", f"got {len(operands)} values; expected {expected}")])
    without, config = tuple(values.pop("no_plugin", ())), values.pop("config", None)
    notes = values.pop("notes", ())
    if command in WITHOUT_SETTINGS:
        idle = ["--config"] * bool(config) + [f"--{key}" for key in values]
        if idle:
            raise ConfigError(Problem(flag, "", f"has no effect with {_flag(command)}; remove it") for flag in idle)
    return Arguments(config, command, operands, as_json, overwrite, without, values, notes)


def _flag(command: str) -> str:
    return f"--{command.replace('_', '-')}"


def _add_commands(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("commands and files")
    group.add_argument("-h", "--help", action="help", help="show this text and exit")
    group.add_argument("--version", action="version", version=f"ed-train {__version__}", help="show the version")
    group.add_argument(
        "--config", action=_Value, metavar="FILE", help="train.json: the settings of the run; or a run.json to repeat"
    )
    for flag, metavar, nargs, help_ in COMMANDS:
        group.add_argument(flag, action=_Command, metavar=metavar, nargs=nargs, help=help_)
    group.add_argument("--json", action="store_true", help="with a command that shows something: as JSON")
    group.add_argument("--overwrite", action="store_true", help="with --export: replace a file that is there already")
    group.add_argument(
        "--no-plugin", action="append", metavar="NAME", help="do not load this plugin; may be given several times"
    )


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
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if bool in leaf_types(annotation) else {}
        text = text.replace("%", "%%")
        (group or parser).add_argument(f"--{key}", action=_Value, metavar="VALUE", help=text, **switch)


def _spelled_as_known(argument: str, known: set[str]) -> str:
    """``--max-epochs`` as ``--max_epochs``, ``--list_optimizers`` as ``--list-optimizers``."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    by_spelling = {flag.replace("_", "-"): flag for flag in known}
    return by_spelling.get(name.replace("_", "-"), name) + equals + value


def _negatives_joined(argv: Sequence[str], known: set[str]) -> list[str]:
    """``--lr -1e-6`` as ``--lr=-1e-6``, which argparse takes for two flags."""
    joined: list[str] = []
    for argument in argv:
        if _NEGATIVE.match(argument) and joined and joined[-1] in known:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _unknown(flag: str, known: set[str]) -> str:
    if flag == "--":
        return "nothing can stand behind it; remove it"
    if not flag.startswith("-"):
        return f"not a flag; did you mean --config {flag}?" if flag.endswith(".json") else "not a flag"
    from ed_train.config.other_names import name_here

    if own_name := name_here(flag.lstrip("-").replace("-", "_")):
        return f"unknown flag; {own_name}"
    close = get_close_matches(flag.replace("-", "_"), {k.replace("-", "_") for k in known}, n=1)
    spelling = next((k for k in known if close and k.replace("-", "_") == close[0]), None)
    return f"unknown flag; did you mean {spelling}?" if spelling else "unknown flag; see ed-train --help"
