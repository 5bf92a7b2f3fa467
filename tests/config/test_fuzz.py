"""Whatever stands in the two files and on the command line: a configuration or clear problems, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ed_train.config.describe import annotations_of
from ed_train.config.load import load_config
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import ConfigError, Problem
from ed_train.registry import load_registry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = Path(__file__).parents[2] / "examples"
REGISTRY = load_registry()
OPTIONS = sorted({name for o in REGISTRY for name in annotations_of(o.spec.config_type)})
SECTIONS = ["base", "text_encoder_overrides", "text_encoder_freezing", "unet_freezing"]
TRAIN_KEYS = sorted(annotations_of(TrainConfig))
OPTIMIZER_KEYS = [
    *SECTIONS, *OPTIONS, "optimizer", "lr_scheduler", "lr_decay_steps", "lr_warmup_steps", "text_encoder_lr_scale",
    "text_encder_lr_scale", "apply_grad_scaler_step_tweaks", "unfreeze_last_n_layers", "freeze_front_n_layers", "doc",
    "rules", "freeze_embeddings",
]  # fmt: skip
STARTS = {name: (EXAMPLES / name).read_bytes() for name in ("train.json", "optimizer.json", "optimizer_dadapt.json")}

numbers = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2, 64, 1000, 2**32, 0.0, 0.5, 1e-6, 1e308, 5e-324])
words = st.sampled_from(["", "none", "true", "lion", "prodigy", "cosine", "1e-6", "input", "/", "~", "..", "~nobody/x"])
scalars = st.none() | st.booleans() | numbers | words | st.text(max_size=20)
train_keys = st.sampled_from(TRAIN_KEYS) | st.text(max_size=10)
optimizer_keys = st.sampled_from(OPTIMIZER_KEYS) | st.text(max_size=10)


def values(keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Values as a JSON file can hold them, objects with familiar keys among them."""
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=12
    )


def objects(keys: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(keys, values(keys), max_size=8)


@st.composite
def edited_bytes(draw: st.DrawFn, start: bytes) -> bytes:
    """A file in which some pieces were replaced, removed or doubled."""
    data = start
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 30)))
        piece = draw(st.sampled_from([b"", b",", b"{", b"[", b'"', b"null", b"-", b"1e", b"\x00", b"\xff", data[:20]]))
        data = data[:begin] + piece + data[end:]
    return data


@st.composite
def edited_object(draw: st.DrawFn, start: bytes, keys: st.SearchStrategy[str]) -> dict[str, Any]:
    """A file in which some keys and values were changed, removed or added, at any depth."""
    edited: dict[str, Any] = json.loads(start)
    for _ in range(draw(st.integers(1, 5))):
        sections = [edited, *(value for value in edited.values() if isinstance(value, dict))]
        section = draw(st.sampled_from(sections))
        change = draw(st.sampled_from(["set", "remove", "add"]))
        if change == "add" or not section:
            section[draw(keys)] = draw(values(keys))
        elif change == "remove":
            del section[draw(st.sampled_from(sorted(section)))]
        else:
            section[draw(st.sampled_from(sorted(section)))] = draw(values(keys))
    return edited


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "input").mkdir()
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


fuzz = settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck), print_blob=True)


def check(
    folder: Path, train: bytes | None = None, optimizer: bytes = b"{}", flags: dict[str, str] | None = None
) -> None:
    """Load; a problem must name a place and stand in one line, and nothing may be written."""
    (folder / "optimizer.json").write_bytes(optimizer)
    given_flags = {"resume_ckpt": "owner/model", **(flags or {})}
    if train is None:
        given_flags.setdefault("optimizer_config", "optimizer.json")
    else:
        (folder / "train.json").write_bytes(train)
    before = sorted(os.listdir(folder))
    problems: tuple[Problem, ...] = ()
    try:
        run = load_config(given_flags, REGISTRY, None if train is None else folder / "train.json")
        assert run.components
        assert all(note.isprintable() for note in run.notes)
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        assert problem.where or problem.key == "resume_ckpt", problem  # which may be missing in both places
        assert problem.message, problem
        assert str(problem).isprintable(), problem
    assert sorted(os.listdir(folder)) == before


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@fuzz
@given(data=st.binary(max_size=200))
def test_any_bytes_as_train_json(data: bytes, folder: Path) -> None:
    check(folder, data)


@fuzz
@given(data=st.binary(max_size=200))
def test_any_bytes_as_optimizer_json(data: bytes, folder: Path) -> None:
    check(folder, optimizer=data)


@fuzz
@given(data=edited_bytes(STARTS["train.json"]))
def test_edited_bytes_of_train_json(data: bytes, folder: Path) -> None:
    check(folder, data)


@fuzz
@given(data=edited_bytes(STARTS["optimizer.json"]))
def test_edited_bytes_of_optimizer_json(data: bytes, folder: Path) -> None:
    check(folder, optimizer=data)


@fuzz
@given(value=objects(train_keys) | values(train_keys))
def test_any_json_as_train_json(value: Any, folder: Path) -> None:
    check(folder, as_json(value))


@fuzz
@given(value=objects(optimizer_keys) | values(optimizer_keys))
def test_any_json_as_optimizer_json(value: Any, folder: Path) -> None:
    check(folder, optimizer=as_json(value))


@fuzz
@given(value=edited_object(STARTS["train.json"], train_keys))
def test_edited_train_json(value: dict[str, Any], folder: Path) -> None:
    check(folder, as_json(value))


@fuzz
@given(
    value=edited_object(STARTS["optimizer.json"], optimizer_keys)
    | edited_object(STARTS["optimizer_dadapt.json"], optimizer_keys)
)
def test_edited_optimizer_json(value: dict[str, Any], folder: Path) -> None:
    check(folder, optimizer=as_json(value))


@fuzz
@given(flags=st.dictionaries(st.sampled_from(TRAIN_KEYS), words | st.text(max_size=20) | numbers.map(str), max_size=5))
def test_any_flags(flags: dict[str, str], folder: Path) -> None:
    check(folder, flags=flags)
