"""How often and how a picture is used: `SETTINGS` of a folder or of one image, such as multiply and flip_p.

Folder files hold for their own folder, global.yaml for everything below it too. What is nearer to the image wins: its
own .yaml, local.yaml, files such as multiply.txt, global.yaml, then the configured defaults.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ed_train.data.files import Findings, FolderFiles, read_text, reason, shown
from ed_train.errors import Problem


class Setting(Protocol):
    """What a data file may say under a key.

    Attributes:
        expected: the values that are allowed, in words.
    """

    @property
    def expected(self) -> str: ...

    def read(self, text: str) -> Any:
        """What the text of a folder's file for this key alone stands for."""

    def taken(self, value: Any) -> Any:
        """The value as it is used; None if it is not allowed."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, of which `example` is one."""

    low: float
    high: float
    example: str

    @property
    def expected(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}, e.g. {self.example}"

    def read(self, text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    def taken(self, value: Any) -> float | None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number and self.low <= value <= self.high else None


class Count:
    """Whole numbers from 1."""

    expected = "an integer >= 1, e.g. 200"

    def read(self, text: str) -> Any:
        return int(text) if text.strip().isdecimal() and len(text) < 20 else text

    def taken(self, value: Any) -> int | None:
        return value if type(value) is int and value >= 1 else None  # True is an int, too


class Switch:
    """On or off. A file for it switches it on by being there, as in EveryDream 2."""

    expected = "true or false"

    def read(self, text: str) -> Any:
        return {"": True, "true": True, "false": False}.get(text.strip().lower(), text)

    def taken(self, value: Any) -> bool | None:
        return value if isinstance(value, bool) else None


class Name:
    """A name, which may look like a number."""

    expected = "a name, e.g. horses"

    def read(self, text: str) -> Any:
        return text.strip()

    def taken(self, value: Any) -> str | None:
        return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "" else None


SETTINGS: Mapping[str, Setting] = {
    "multiply": Range(0, 10_000, "2"),
    "flip_p": Range(0, 1, "0.5"),
    "cond_dropout": Range(0, 1, "0.5"),
    "loss_scale": Range(0, 1000, "0.5"),
    "batch_id": Name(),
    "shuffle_tags": Switch(),
    "max_caption_length": Count(),
    "rating": Range(0, 10_000, "2"),
}
TEXT_FILES = ("multiply", "flip_p", "cond_dropout", "loss_scale", "batch_id", "shuffle_tags")
"""Those that a folder may have a file of their own for, such as ``multiply.txt``."""
FOLDER_FILES = frozenset({*(f"{key}.txt" for key in TEXT_FILES), "local.yaml", "global.yaml"})
CAPTION_KEYS = ("main_prompt", "tags")

_C_LOADER_LIMIT = 4096  # characters: libyaml's binding overflows the C stack on text that is nested too deeply


def folder_settings(
    files: FolderFiles, inherited: Mapping[str, Any], findings: Findings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the settings files of one folder.

    Args:
        files: the folder's files.
        inherited: what the global.yaml files above say.
        findings: receives a problem for each value that is out of its range or file that cannot be read, and notes.

    Returns:
        The settings of this folder's images, and those that its subfolders inherit.
    """
    below = {**inherited, **_folder_yaml(files.find("global.yaml"), findings)}
    here = dict(below)
    for key in TEXT_FILES:
        if path := files.find(f"{key}.txt"):
            findings.used.append(path)
            text = _text(path, findings)
            if text is not None and (value := _checked(path, key, SETTINGS[key].read(text), findings)) is not None:
                here[key] = value
    return {**here, **_folder_yaml(files.find("local.yaml"), findings)}, below


def _folder_yaml(path: Path | None, findings: Findings) -> dict[str, Any]:
    if path is None:
        return {}
    content = read_yaml(path, findings)
    note_idle_keys(path, content, (), findings)
    return settings_of(path, content, findings)


def settings_of(path: Path, content: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """Return the settings in a YAML file's content; null means not set, a bad value is a problem in `findings`."""
    given = ((key, content[key]) for key in SETTINGS if content.get(key) is not None)
    checked = ((key, _checked(path, key, value, findings)) for key, value in given)
    return {key: value for key, value in checked if value is not None}


def note_idle_keys(path: Path, content: Mapping[str, Any], also_used: tuple[str, ...], findings: Findings) -> None:
    """Note each key of a YAML file that is neither a setting nor among `also_used`."""
    used = [*SETTINGS, *also_used]
    for key in map(str, content):
        if key in used:
            continue
        note = f"unknown key {shown(key)!r} has no effect"
        if key in CAPTION_KEYS:
            note = f"{key} has no effect here"
        elif close := get_close_matches(key, used, n=1):
            note += f"; did you mean {close[0]!r}?"
        findings.notes.append((note, path))


def read_yaml(path: Path, findings: Findings) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty, with a problem in `findings`, if the file holds something else."""
    import yaml

    findings.used.append(path)
    text = _text(path, findings) or ""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if len(text) < _C_LOADER_LIMIT else yaml.SafeLoader
    where = shown(path)
    try:
        content = yaml.load(text, _without_duplicates(loader))  # a SafeLoader as well
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        findings.problems.append(Problem(where + line, "", f"not valid YAML: {error.problem}"))
        return {}
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        findings.problems.append(Problem(where, "", f"not valid YAML: {reason(error)}"))
        return {}
    if content is not None and not isinstance(content, dict):
        message = f"got {quoted(content)}; expected keys and values, e.g. multiply: 2"
        findings.problems.append(Problem(where, "", message))
        return {}
    return content or {}


@cache
def _without_duplicates(loader: Any) -> Any:
    """The same loader, for which a key that stands twice in a mapping is an error, as in JSON files."""
    from yaml.constructor import ConstructorError

    class Loader(loader):  # type: ignore[misc]  # a class that is known at run time alone
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: dict[str, int] = {}
            for key in (key for key, _ in node.value if isinstance(key.value, str)):
                line = key.start_mark.line + 1
                if key.value in seen:
                    message = f"the key {key.value!r} stands in line {seen[key.value]} and in line {line}; keep one"
                    raise ConstructorError(None, None, message, key.start_mark)
                seen[key.value] = line
            return super().construct_mapping(node, deep)

    return Loader


def _text(path: Path, findings: Findings) -> str | None:
    try:
        text, notes = read_text(path)
    except (OSError, ValueError) as error:
        findings.problems.append(Problem(shown(path), "", f"cannot be read: {reason(error)}"))
        return None
    findings.notes += [(note, path) for note in notes]
    return text


def _checked(path: Path, key: str, value: Any, findings: Findings) -> Any:
    taken = SETTINGS[key].taken(value)
    if taken is None:
        message = f"got {quoted(value)}; expected {SETTINGS[key].expected}"
        findings.problems.append(Problem(shown(path), key, message))
    return taken


def quoted(value: Any) -> str:
    """Return a value of a user's file for a one-line message, cut to a readable length."""
    kind = {str: "text", bool: "true or false", list: "list", dict: "mapping", type(None): "null"}.get(type(value))
    text = shown(reprlib.repr(value))
    return (text if len(text) <= 80 else f"{text[:77]}...") + (f" ({kind})" if kind else "")
