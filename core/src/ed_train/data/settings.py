"""How often and how a picture is used: `SETTINGS` of a folder or of one image, such as multiply and flip_p.

Folder files hold for their own folder, global.yaml for everything below it too. What is nearer to the image wins: its
own .yaml, local.yaml, files such as multiply.txt, global.yaml, then the configured defaults.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ed_train.data.files import Findings, FolderFiles, read_text, reason, shown
from ed_train.errors import Problem


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
        example: one of them.
        in_text_file: whether a folder may have a file for it, named after the key.
    """

    low: float
    high: float
    example: str
    in_text_file: bool = True

    @property
    def expected(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}, e.g. {self.example}"

    def read(self, text: str) -> Any:
        """What the text of such a file stands for."""
        try:
            return float(text)
        except ValueError:
            return text

    def taken(self, value: Any) -> float | None:
        """The value as it is used; None if it is not allowed."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number and self.low <= value <= self.high else None


SETTINGS: Mapping[str, Range] = {
    "multiply": Range(0, 10_000, "2"),
    "flip_p": Range(0, 1, "0.5"),
    "cond_dropout": Range(0, 1, "0.5"),
    "rating": Range(0, 10_000, "2", in_text_file=False),
}
_TEXT_FILES = (f"{key}.txt" for key, setting in SETTINGS.items() if setting.in_text_file)
FOLDER_FILES = frozenset({*_TEXT_FILES, "local.yaml", "global.yaml"})
CAPTION_KEYS = ("main_prompt", "tags")
NOT_IMPLEMENTED = ("batch_id", "loss_scale", "max_caption_length", "shuffle_tags")
"""Keys of data files that EveryDream 2 knows and ed-train does not act upon yet."""

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
    for key, setting in SETTINGS.items():
        if setting.in_text_file and (path := files.find(f"{key}.txt")):
            findings.used.append(path)
            text = _text(path, findings)
            if text is not None and (value := _checked(path, key, setting.read(text), findings)) is not None:
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
        if key in NOT_IMPLEMENTED or key in CAPTION_KEYS:
            note = f"{key} has no effect here"
        elif close := get_close_matches(key, used, n=1):
            note += f"; did you mean {close[0]!r}?"
        findings.notes.append((note, path))


def read_yaml(path: Path, findings: Findings) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty, with a problem in `findings`, if the file holds something else."""
    import yaml

    findings.used.append(path)
    text = _text(path, findings) or ""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if len(text) < _C_LOADER_LIMIT else yaml.SafeLoader
    where = shown(path)
    try:
        content = yaml.load(text, fast)
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
    return shown(reprlib.repr(value)) + (f" ({kind})" if kind else "")
