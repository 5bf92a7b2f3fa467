"""Rewrite the tables of configuration.md from the types that check the configuration.

    python docs/generate.py

The text between the tables is written by hand. What stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is
replaced by what the function of that name returns. Plugins describe their options in their own READMEs, so that adding
one changes no file outside its folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ed_train.config.describe import annotations_of, default_of, expected, find_metadata, help_of, show
from ed_train.config.optimizer_keys import ScaleAndTweaks, ScheduleConfig
from ed_train.config.train_keys import DEAD, OWN_KEYS, Group, TrainConfig
from ed_train.config.validation import ValidationConfig
from ed_train.models.prompts import SamplePrompt, SampleSettings

DOCS = Path(__file__).parent
PAGE = DOCS / "configuration.md"
WITHOUT_EFFECT = set(DEAD)


def page(text: str) -> str:
    """The page with all its tables made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        block = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if len(block.findall(text)) != 1:
            raise SystemExit(f"{PAGE.name}: expected {begin} and {end} once")
        content = "\n".join(make())
        text = block.sub(lambda _, new=f"{begin}\n\n{content}\n\n{end}": new, text)  # type: ignore[misc]
    return text


def train_keys() -> Iterator[str]:
    """A table for each group of train.json."""
    groups: dict[str, list[str]] = {}
    title = ""
    for key, annotation in annotations_of(TrainConfig).items():
        group = find_metadata(annotation, Group)
        title = group.title if group else title
        if key not in WITHOUT_EFFECT:
            groups.setdefault(title, []).append(key)
    for number, (heading, keys) in enumerate(groups.items()):
        yield from ([] if number == 0 else [""])
        yield from (f"### {heading[0].upper()}{heading[1:]}", "", *option_table(TrainConfig, keys))


def keys_without_effect() -> Iterator[str]:
    """What is known, and does nothing."""
    yield from ("| key | why, and what to use instead |", "|---|---|")
    for key, instead in DEAD.items():
        yield f"| `{key}` | {cell(instead or 'nothing acts upon it any more')} |"


def single_keys() -> Iterator[str]:
    """The keys at the top of optimizer.json."""
    yield from option_table(ScaleAndTweaks)


def schedule_keys() -> Iterator[str]:
    """The schedule's keys in each section of optimizer.json."""
    yield from option_table(ScheduleConfig)


def sample_settings() -> Iterator[str]:
    """The keys of a JSON file of sample prompts."""
    yield from option_table(SampleSettings, [key for key in annotations_of(SampleSettings) if key != "samples"])


def sample_prompts() -> Iterator[str]:
    """The keys of each of its pictures."""
    yield from option_table(SamplePrompt)


def validation_keys() -> Iterator[str]:
    """The keys of a validation file."""
    yield from option_table(ValidationConfig)


def option_table(config_type: type[Any], keys: Iterable[str] = ()) -> Iterator[str]:
    """One row for each key: name, type and range, default, help."""
    yield from ("| key | value | default | what it does |", "|---|---|---|---|")
    annotations = annotations_of(config_type)
    for key in keys or annotations:
        default = show(default_of(config_type, key))
        added = " (not in EveryDream 2)" if config_type is TrainConfig and key in OWN_KEYS else ""
        value, text = cell(expected(annotations[key])), cell(help_of(annotations[key]) + added)
        yield f"| `{key}` | {value} | `{default}` | {text} |"


def cell(text: str) -> str:
    """A text as it may stand in a table."""
    return text.replace("|", "\\|").replace("*", "\\*")


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        train_keys, keys_without_effect, single_keys, schedule_keys, sample_settings, sample_prompts, validation_keys,
    )
}  # fmt: skip

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
