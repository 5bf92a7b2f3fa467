"""Every link of the documents leads somewhere, and every command in them has flags and targets that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from ed_train.commands.arguments import COMMANDS
from ed_train.compare.arguments import _parser as compare_parser
from ed_train.config.describe import annotations_of
from ed_train.config.train_keys import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "plugins/*/*.md", "benchmarks/*.md", "core/*.md")
    for path in ROOT.glob(pattern)
)
TRAIN_FLAGS = {f"--{key}" for key in annotations_of(TrainConfig)} | {flag for flag, *_ in COMMANDS}
TRAIN_FLAGS |= {"--help", "--version", "--config", "--json", "--overwrite", "--no-plugin"}
COMPARE_FLAGS = {flag for action in compare_parser()._actions for flag in action.option_strings}


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """The words of every command line in a block of code."""
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text, re.DOTALL)
    lines = [
        *re.findall(r"^    (\S.*)$", text, re.MULTILINE),
        *(line for block in blocks for line in block.splitlines()),
    ]
    starts = ("ed-train ", "ed-compare ", "make ", "cd ", ".venv/bin/")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


def test_there_are_pages_and_commands() -> None:
    assert {"README.md", "docs/compare.md", "plugins/lion/README.md"} <= set(map(page_id, PAGES))
    assert sum(len(commands(path.read_text("utf-8"))) for path in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_have_flags_and_targets_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    wrong = []
    for words in commands(page.read_text("utf-8")):
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        program = next((Path(word).name for word in words if Path(word).name in ("ed-train", "ed-compare")), words[0])
        if program == "ed-train":
            wrong += [flag for flag in flags if flag not in TRAIN_FLAGS]
        elif program == "ed-compare":
            wrong += [flag for flag in flags if flag not in TRAIN_FLAGS | COMPARE_FLAGS]
        elif program == "make":
            named = [word for word in words[1:] if "=" not in word][:1]  # what follows may be prose
            wrong += [word for word in named if word not in targets]
    assert wrong == []


def test_every_example_is_explained() -> None:
    text = (ROOT / "examples" / "README.md").read_text("utf-8")
    entries = {path.name for path in (ROOT / "examples").iterdir() if path.name not in ("README.md", "__pycache__")}
    assert entries == set(re.findall(r"^\| \[([\w.-]+)\]", text, re.MULTILINE))
