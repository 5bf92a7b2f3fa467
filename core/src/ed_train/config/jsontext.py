"""Read JSON files strictly, with the line of every key.

The standard library's decoder accepts NaN, Infinity, 1e400 and duplicate keys, keeps no positions, and recurses as
deep as the input says. A configuration file deserves better: every problem is reported with its line and column.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in typeshed
from pathlib import Path
from typing import Any

from ed_train.config.describe import show, show_with_type
from ed_train.errors import ConfigError, Problem

MAX_DEPTH = 50
MAX_BYTES = 10_000_000
Key = tuple[str | int, ...]
"""Where a value stands in a document, e.g. ``("base", "betas", 0)``."""

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
_STRING_ERRORS = (
    ("Unterminated", 'the text that begins here does not end; close it with "'),
    ("Invalid control", "a line break or tab within a text; write \\n or \\t"),
    ("Invalid \\", "a backslash within a text; write two of them, or / in paths"),
)
"""What the standard library says of a text, by its first words, and what we say."""
_LITERALS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Document:
    """A JSON object that was read from a file, and where its keys stand."""

    path: Path
    value: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    def where(self, *key: str | int) -> str:
        """``train.json:12`` for a key of this document, or the file alone."""
        line = self.lines.get(key)
        return f"{self.path.name}:{line}" if line else self.path.name


def read_json_object(path: Path, duplicates: list[Problem] | None = None) -> Document:
    """Read a file whose top level is an object.

    Args:
        path: the file.
        duplicates: receives the duplicate keys, so that what else is wrong with the values can be said as well;
            without, they are raised.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, not JSON, has duplicate keys or numbers that JSON
            does not have; every duplicate key is listed, and the first syntax error.
    """
    return parse_json_object(_read_text(path), path, duplicates)


def parse_json_object(text: str, path: Path, duplicates: list[Problem] | None = None) -> Document:
    """Parse `text`, the content of `path`; see `read_json_object`."""
    parser = _Parser(text, path)
    try:
        value = parser.document()
    except JSONDecodeError as error:
        where = f"{path.name}:{error.lineno}:{error.colno}"
        raise ConfigError([*parser.problems, Problem(where, "", error.msg)]) from None
    if not isinstance(value, dict):
        found = f"{show_with_type(value)} at the top level" if text.strip() else "an empty file"
        raise ConfigError([*parser.problems, Problem(path.name, "", f"found {found}; expected an object: {{...}}")])
    if duplicates is not None:
        duplicates += parser.problems
    elif parser.problems:
        raise ConfigError(parser.problems)
    return Document(path, value, parser.lines)


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([Problem(path.name, "", _missing(path))]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem(str(path)[:200], "", f"cannot be read: {reason}")]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError([Problem(path.name, "", f"larger than {MAX_BYTES:,} bytes; is this the right file?")])
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise ConfigError([Problem(path.name, "", "has NUL characters; save the file as UTF-8 (is it UTF-16?)")])
        return text
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"byte {error.start} is not UTF-8; save the file as UTF-8 (UTF-16 and cp1252 are not accepted)"
        raise ConfigError([Problem(f"{path.name}:{line}", "", message)]) from None


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for somebody to write, as a named pipe would; one that has a writer is read to its end."""
    if os.name != "posix":
        return os.open(path, flags)
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _missing(path: Path) -> str:
    folder = path.parent.absolute()
    if not folder.is_dir():
        return f"no such file: the folder {folder} does not exist"
    names = sorted(p.name for p in folder.glob("*.json"))
    close = get_close_matches(path.name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else f"; JSON files there: {', '.join(names[:10]) or 'none'}"
    return f"no such file in {folder}{hint}"


class _Parser:
    """A recursive descent over RFC 8259, bounded in depth; `scanstring` of the standard library reads the strings."""

    def __init__(self, text: str, path: Path) -> None:
        self.text = text
        self.path = path
        self.problems: list[Problem] = []
        self.lines: dict[Key, int] = {}
        self._line, self._line_start = 1, 0  # positions only move forward, so lines are counted once

    def document(self) -> Any:
        start = self._space(0)
        if start == len(self.text):
            return None
        value, end = self._value(start, ())
        if (end := self._space(end)) != len(self.text):
            raise self._error("unexpected text after the end of the JSON value", end)
        return value

    def _value(self, at: int, key: Key) -> tuple[Any, int]:
        if len(key) > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels", at)
        char = self.text[at : at + 1]
        if char == "{":
            return self._object(at + 1, key)
        if char == "[":
            return self._array(at + 1, key)
        if char == '"':
            return self._string(at)
        if match := _NUMBER.match(self.text, at):
            return self._number(match)
        return self._literal(at, key)

    def _object(self, at: int, key: Key) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}

        def member(at: int) -> int:
            if self.text[at : at + 1] != '"':
                raise self._no_key(at)
            line = self._line_of(at)
            name, at = self._string(at)
            at = self._space(at)
            if self.text[at : at + 1] != ":":
                raise self._error(f'expected ":" after the key "{name[:40]}"', at)
            child = (*key, name)
            if name in result:
                first = self.lines[child]
                places = f"twice in line {line}" if first == line else f"in line {first} and in line {line}"
                message = f"duplicate key; it stands {places}; keep one"
                self.problems.append(Problem(f"{self.path.name}:{line}", ".".join(map(str, child)), message))
            self.lines[child] = line
            result[name], at = self._value(self._space(at + 1), child)
            return at

        return result, self._members(at, "}", member)

    def _array(self, at: int, key: Key) -> tuple[list[Any], int]:
        result: list[Any] = []

        def member(at: int) -> int:
            child = (*key, len(result))
            self.lines[child] = self._line_of(at)
            value, at = self._value(at, child)
            result.append(value)
            return at

        return result, self._members(at, "]", member)

    def _members(self, at: int, close: str, member: Callable[[int], int]) -> int:
        """Read comma-separated members up to `close`; returns the position behind it."""
        at = self._space(at)
        if self.text[at : at + 1] == close:
            return at + 1
        while True:
            at = self._space(member(at))
            char = self.text[at : at + 1]
            if char == close:
                return at + 1
            if char != ",":
                raise self._error(f'expected "," or "{close}"', at)
            comma, at = at, self._space(at + 1)
            if self.text[at : at + 1] == close:
                raise self._error(f'remove the comma before "{close}"', comma)

    def _string(self, at: int) -> tuple[str, int]:
        try:
            value, end = scanstring(self.text, at + 1, True)
        except JSONDecodeError as error:
            advice = next((advice for begins, advice in _STRING_ERRORS if error.msg.startswith(begins)), error.msg)
            raise self._error(advice, error.pos) from None
        if match := _UNUSABLE.search(value):
            kind = "a NUL character" if match.group() == "\x00" else "half a surrogate pair"
            raise self._error(f"a text with {kind}", at)
        return value, end

    def _number(self, match: re.Match[str]) -> tuple[int | float, int]:
        text, at = match.group(), match.start()
        if _WORD.match(self.text, match.end()) or self.text[match.end() : match.end() + 1].isdigit():
            raise self._error(f"{text + self.text[match.end()]!r} does not begin a number in JSON", at)
        if match.group(1) is None and match.group(2) is None:
            if len(text) > 30:
                raise self._error(f"an integer of {len(text)} digits", at)
            return int(text), match.end()
        value = float(text)
        if math.isinf(value):
            raise self._error(f"{text[:30]} is too large for a number", at)
        return value, match.end()

    def _literal(self, at: int, key: Key) -> tuple[Any, int]:
        match = _WORD.match(self.text, at + (self.text[at : at + 1] == "-"))
        word = match.group() if match else self.text[at : at + 1]
        if match and word in _LITERALS and match.start() == at:
            return _LITERALS[word], match.end()
        if word in ("NaN", "Infinity", "nan", "inf"):
            hint = " (null means no limit)" if key and key[-1] == "growth_rate" else ""
            raise self._error(f"JSON has no {word}; write a number or null{hint}", at)
        if word.lower() in ("true", "false", "null", "none"):
            raise self._error(f"{word!r}: write {word.lower().replace('none', 'null')}, in lower case", at)
        raise self._foreign(word, at) or self._error(f"expected a value, found {word!r}", at)

    def _no_key(self, at: int) -> JSONDecodeError:
        """The error where a key should begin."""
        match = _WORD.match(self.text, at)
        hint = f"; write {show(match.group())}" if match else ""
        return self._foreign(self.text[at : at + 1], at) or self._error(f"expected a key in double quotes{hint}", at)

    def _foreign(self, found: str, at: int) -> JSONDecodeError | None:
        """The error for what other languages have here and JSON does not."""
        if not found:
            return self._error("the file ends too early", at)
        if found == "'":
            return self._error("single quotes are not JSON; write double quotes", at)
        return None

    def _space(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return match.end() if match else at

    def _line_of(self, at: int) -> int:
        self._line += self.text.count("\n", self._line_start, at)
        self._line_start = at
        return self._line

    def _error(self, message: str, at: int) -> JSONDecodeError:
        if self.text.startswith(("#", "//", "/*"), at):
            message = 'JSON has no comments; remove this one, or put it under the key "doc"'
        return JSONDecodeError(message, self.text, at)
