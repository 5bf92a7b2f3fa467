"""An image's caption: a .txt or .caption file of the same stem, else a .yaml, else the file name up to the first _."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ed_train.data.files import Findings, FolderFiles, read_text, reason, shown
from ed_train.data.settings import CAPTION_KEYS, FOLDER_FILES, note_idle_keys, quoted, read_yaml, settings_of
from ed_train.errors import Problem

TEXT_SUFFIXES = (".txt", ".caption")
YAML_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Tag:
    """One tag of a YAML caption; those of larger weight tend to come first when tags are shuffled."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Caption:
    """What an image shows.

    Attributes:
        main: the text of a caption file or file name as it is, or the main_prompt of a .yaml.
        tags: the tags of a .yaml, in the file's order.
        is_tag_list: `main` is text whose comma-separated parts may be shuffled; a main_prompt is not.
    """

    main: str
    tags: tuple[Tag, ...] = ()
    is_tag_list: bool = True

    def render(self, rng: random.Random, *, shuffle_tags: bool, keep_tags: int, max_length: int | None = None) -> str:
        """Return the prompt of one training sample.

        Args:
            rng: source of the order of tags; not used without `shuffle_tags`.
            shuffle_tags: put comma-separated parts in random order; the tags of a .yaml by weighted sampling without
                replacement (Efraimidis and Spirakis, 2006), after the main prompt, which stays first.
            keep_tags: how many of the first parts, or of the first tags of a .yaml, stay where they are.
            max_length: characters; a part or tag that would go beyond is left out, with all that follow it. The first
                part, or the main prompt, always stays, and nothing is cut in two.
        """
        whole = max_length is None or len(self.main) <= max_length
        if self.is_tag_list and whole and not shuffle_tags:
            return self.main
        in_order = self._parts if self.is_tag_list else self._tags
        parts = in_order(rng, keep_tags, shuffle_tags)
        return ", ".join(parts if max_length is None else _within(parts, max_length))

    def _parts(self, rng: random.Random, keep_tags: int, shuffle_tags: bool) -> list[str]:
        parts = [part for text in self.main.split(",") if (part := text.strip())]
        moved = parts[keep_tags:]
        if shuffle_tags:
            rng.shuffle(moved)
        return parts[:keep_tags] + moved

    def _tags(self, rng: random.Random, keep_tags: int, shuffle_tags: bool) -> list[str]:
        tags: Sequence[Tag] = self.tags
        if shuffle_tags:
            tags = [*tags[:keep_tags], *sorted(tags[keep_tags:], key=lambda tag: arrival_time(rng, tag.weight))]
        return [self.main] * bool(self.main) + [tag.text for tag in tags]


def _within(parts: Sequence[str], limit: int) -> Sequence[str]:
    """The first of the parts that fit, joined by a comma and a blank, into so many characters; at least one."""
    ends = itertools.accumulate(len(part) + 2 for part in parts)
    return [part for part, end in zip(parts, ends, strict=True) if end - 2 <= limit] or parts[:1]


def arrival_time(rng: random.Random, weight: float) -> float:
    """An exponential waiting time of this rate: sorting by it draws by weight without replacement."""
    return -math.log(1.0 - rng.random()) / weight if weight else math.inf


def read_caption(image: Path, files: FolderFiles, findings: Findings) -> tuple[Caption, dict[str, Any]]:
    """Find and read the caption of an image.

    Args:
        image: the image's path; the file itself is not opened.
        files: the files of its folder.
        findings: receives a problem for whatever is wrong in the image's .yaml, notes, and the files used.

    Returns:
        The caption, and those of `SETTINGS` that the image's .yaml has.
    """
    text_file, yaml_file = _beside(image, files, TEXT_SUFFIXES), _beside(image, files, (YAML_SUFFIX,))
    content = read_yaml(yaml_file, findings) if yaml_file else {}
    overrides: dict[str, Any] = {}
    if yaml_file:
        note_idle_keys(yaml_file, content, () if text_file else CAPTION_KEYS, findings)
        overrides = settings_of(yaml_file, content, findings)
    if text_file:
        findings.used.append(text_file)
        caption = _text_caption(text_file, findings) or _name_caption(image)
    elif yaml_file and any(content.get(key) is not None for key in CAPTION_KEYS):
        caption = _yaml_caption(yaml_file, content, findings)
    else:
        caption = _name_caption(image)
        findings.notes.append(("no caption: the file name up to the first _ is used", image))
    if not caption.main and not caption.tags:
        findings.notes.append(("empty caption: trains as an empty prompt", text_file or yaml_file or image))
    return caption, overrides


def _beside(image: Path, files: FolderFiles, suffixes: Sequence[str]) -> Path | None:
    found = (files.find(image.stem + suffix) for suffix in suffixes)
    return next((path for path in found if path and path.name.casefold() not in FOLDER_FILES), None)


def _text_caption(path: Path, findings: Findings) -> Caption | None:
    try:
        text, notes = read_text(path)
    except (OSError, ValueError) as error:
        findings.notes.append((f"caption file not read ({reason(error)}): the file name is used", path))
        return None
    findings.notes += [(note, path) for note in notes]
    return Caption(text if text.strip(", \t\r\n") else "")


def _name_caption(image: Path) -> Caption:
    text = os.fsencode(image.stem.split("_")[0]).decode("utf-8", errors="replace")
    return Caption(" ".join(text.split()))


def _yaml_caption(path: Path, content: Mapping[str, Any], findings: Findings) -> Caption:
    main, entries = content.get("main_prompt"), content.get("tags")
    if not (main is None or isinstance(main, str)):
        message = f"got {quoted(main)}; expected text, in quotes if need be"
        findings.problems.append(Problem(shown(path), "main_prompt", message))
        main = None
    if not (entries is None or isinstance(entries, list)):
        message = f'got {quoted(entries)}; expected a list, e.g. ["red hat", "blue sky"]'
        findings.problems.append(Problem(shown(path), "tags", message))
        entries = None
    tags = [_tag(entry) for entry in entries or ()]
    for number, (entry, tag) in enumerate(zip(entries or (), tags, strict=True), start=1):
        if tag is None:
            message = f"got {quoted(entry)}; expected text, or {{tag: text, weight: a number from 0}}"
            findings.problems.append(Problem(shown(path), f"tags[{number}]", message))
    return Caption((main or "").strip(), tuple(tag for tag in tags if tag), is_tag_list=False)


def _tag(entry: Any) -> Tag | None:
    """The tag that a list member stands for, or None if it is malformed."""
    fields = {"tag": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict) or set(fields) - {"tag", "weight"}:
        return None
    text, weight = fields.get("tag"), fields.get("weight", 1.0)
    if not isinstance(text, str) or not text.strip():
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        return None
    return Tag(text.strip(), float(weight))
