"""Damaged checkpoints, and what lies beside them: found, named, passed over, and never touched."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ed_train.cli import main
from ed_train.config.ema import EMA_RECORD
from ed_train.config.resume import STATE_FILE, find_latest, find_named
from ed_train.errors import CheckpointError
from ed_train.models import atomic
from ed_train.models.atomic import CHECKSUM, MANIFEST, check_files, file_sha256, read_manifest, write_manifest
from ed_train.train.checkpoint import checkpoints_of
from reliability.conftest import EVERY_STEP
from reliability.driver import Runner
from reliability.small import RUN_ID, save
from train.resuming import assert_equal_runs


@pytest.fixture
def ckpts(tmp_path: Path) -> Path:
    """Where the checkpoints of a run in ``tmp_path / "logs"`` lie."""
    folder = tmp_path / "logs" / "run" / "ckpts"
    folder.mkdir(parents=True)
    return folder


def latest(ckpts: Path, project: str | None = "myproj") -> tuple[int | None, list[str]]:
    """The step of the newest usable checkpoint, and the lines about what was passed over."""
    point, notes = find_latest(ckpts.parents[1], None, project)
    return (point.manifest["step"] if point else None), notes


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def flip_bit(path: Path, number: int) -> None:
    data = bytearray(path.read_bytes())
    data[number // 8] ^= 1 << number % 8
    path.write_bytes(data)


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: cut(path, 0),
    "cut to a byte": lambda path: path.write_bytes(path.read_bytes()[:1]),
    "cut to a half": lambda path: cut(path, 0.5),
    "cut to 99 %": lambda path: cut(path, 0.99),
    "one bit": lambda path: flip_bit(path, 4 * path.stat().st_size),
    "zeros at its end": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named_and_passed_over(damage: str, ckpts: Path) -> None:
    _, newest = save(ckpts, 9, 10, keep_states=True)
    names = [MANIFEST, *read_manifest(newest)["files"]]
    assert len(names) >= 12
    for name in names:
        path = newest / name
        before = path.read_bytes()
        DAMAGES[damage](path)
        if path.exists() and path.read_bytes() == before:  # an end of zeros, or a single byte
            continue
        point, message = find_named(str(newest), ckpts)
        assert point is None
        step, notes = latest(ckpts)
        assert step == 9
        if (name, damage) == (STATE_FILE, "deleted"):  # as it is in every older checkpoint
            assert "has no training state: it was removed when a newer one was saved" in message
            assert notes == []
        else:
            assert str(newest) in message
            assert name in message
            assert notes == [f"passed over: {message}"]
        path.write_bytes(before)
    assert latest(ckpts) == (10, [])


def test_no_bit_of_a_manifest_changes_unseen(ckpts: Path) -> None:
    (checkpoint,) = save(ckpts, 1)
    path, chance = checkpoint / MANIFEST, random.Random(5)
    before, content = path.read_bytes(), read_manifest(checkpoint)
    for number in chance.sample(range(8 * len(before)), 500):
        flip_bit(path, number)
        try:
            assert read_manifest(checkpoint) == content, number  # the e of 1e-05 may become an E
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
        path.write_bytes(before)


# Beside checkpoints


def test_what_is_no_checkpoint_is_passed_over(ckpts: Path) -> None:
    old, newest = save(ckpts, 9, 10, keep_states=True)
    (ckpts / "empty").mkdir()
    (ckpts / "notes.txt").write_text("mine")
    (ckpts / "nowhere").symlink_to(ckpts / "gone")
    shutil.copytree(newest, ckpts / ".myproj-ep00-gs00011.partial-1")
    weights = ckpts / "weights"
    shutil.copytree(newest, weights, ignore=shutil.ignore_patterns("*.pt", MANIFEST))
    before = contents(ckpts)
    step, notes = latest(ckpts)
    assert step == 10
    assert [note for note in notes if str(weights) not in note] == []
    assert "has no manifest.json; it is no checkpoint of ed-train, or not whole" in notes[0]
    for name, words in {
        "empty": "has no manifest.json",
        "notes.txt": "notes.txt is a file; expected a checkpoint's folder; a file holds a model alone: begin a new run",
        "nowhere": "is a link that leads nowhere",
        ".myproj-ep00-gs00011.partial-1": "was never finished",
    }.items():
        point, message = find_named(str(ckpts / name), ckpts)
        assert (point, words in message) == (None, True), message
    assert contents(ckpts) == before
    assert checkpoints_of(RUN_ID, ckpts) == [old, newest]


def test_a_link_leads_to_a_checkpoint_and_is_not_counted_as_one(ckpts: Path, tmp_path: Path) -> None:
    moved = save(ckpts, 1, keep_states=True)[0].rename(tmp_path / "moved")
    link = ckpts / "myproj-ep00-gs00001"
    link.symlink_to(moved)
    point, _ = find_named(str(link), ckpts)
    assert point
    assert point.manifest["step"] == 1
    assert latest(ckpts) == (1, [])
    before = contents(moved)
    save(ckpts, 2, 3, 4, keep=1)
    assert contents(moved) == before
    assert sorted(p.name for p in ckpts.iterdir()) == [link.name, "myproj-ep00-gs00004"]


def test_step_10_is_newer_than_step_9(ckpts: Path) -> None:
    nine, ten = save(ckpts, 9, 10, keep_states=True)
    nine.rename(ckpts / "z-gs9")
    ten.rename(ckpts / "a-gs10")
    assert latest(ckpts)[0] == 10
    for path in ckpts.iterdir():
        write_manifest(path, {**read_manifest(path), "saved_ns": 1})
    assert latest(ckpts)[0] == 10, "saved at the same moment"


def test_projects_in_one_folder_of_runs(ckpts: Path) -> None:
    save(ckpts, 9, keep_states=True)
    other = ckpts.parents[1] / "other" / "ckpts"
    other.mkdir(parents=True)
    save(other, 10, keep_states=True, project_name="other", run_id="fedcba9876543210")
    assert latest(ckpts) == (9, [])
    assert latest(ckpts, "other") == (10, [])
    assert latest(ckpts, "third") == (None, [])
    assert latest(ckpts, None) == (10, []), "of any project"


@pytest.mark.parametrize("keep", [None, 1], ids=["its state is removed", "it is removed"])
@pytest.mark.parametrize("function", ["read_manifest", "check_files"])
def test_what_a_run_removes_while_it_is_looked_at_is_not_damaged(
    function: str, keep: int | None, ckpts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that another process trains: what lies there is another checkpoint than a moment ago, at two moments."""
    older = tmp_path / "logs" / "of another run" / "ckpts"
    older.mkdir(parents=True)
    save(older, 7, run_id="fedcba9876543210")
    save(ckpts, 1)
    usual, steps = getattr(atomic, function), [2, 3]

    def meanwhile(folder: Path, *args: Any, **kwargs: Any) -> Any:
        if steps and folder.parent == ckpts:
            with monkeypatch.context() as patch:
                patch.setattr(atomic, function, usual)
                save(ckpts, steps.pop(0), keep=keep)
        return usual(folder, *args, **kwargs)

    monkeypatch.setattr(atomic, function, meanwhile)
    assert latest(ckpts) == (3, [])
    assert steps == []


# Manifests of other programs


WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("step", "epoch", "batches_done", "batch_number", "saved_ns"), ("1", None, -1, 1.5, True, [1], {})),
    **dict.fromkeys(("run_id", "run_folder", "data"), (1, None, [], {})),
    "optimizers": (None, [], "adamw", {"unet": "adamw"}, {"unet": {}}, {"unet": None}),
    "run": (None, [], {}, {"train": {}}, {"train": {}, "optimizer": []}, {"train": {}, "optimizer": {"base": 1}}),
    EMA_RECORD: ("on", [1], {"begun": "1"}, {"begun": -1}),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_field_of_another_type_is_named(key: str, ckpts: Path, flags: dict[str, str], capsys) -> None:
    _, newest = save(ckpts, 1, 2, keep_states=True)
    whole = read_manifest(newest)
    for value in WRONG[key]:
        write_manifest(newest, {**whole, key: value})
        point, message = find_named(str(newest), ckpts)
        assert point is None, value
        assert f"{newest / MANIFEST} is not as ed-train writes it; unusable: {key}" in message
        step, notes = latest(ckpts)
        assert (step, notes) == (1, [f"passed over: {message}"])
    write_manifest(newest, {k: v for k, v in whole.items() if k != key} if key != EMA_RECORD else {**whole, key: 1})
    for argv in ([f"--{k}={v}" for k, v in {**flags, "resume": newest}.items()], ["--resume", str(newest)]):
        assert main(argv) == 2
        err = capsys.readouterr().err
        (line,) = (text for text in err.splitlines() if f"unusable: {key}" in text)
        assert line.startswith("error: --resume: ")
    assert newest not in checkpoints_of(RUN_ID, ckpts) or key not in ("saved_ns", "run_id")


@pytest.mark.parametrize("kind", ["within the folder's parents", "absolute", "through the folder itself"])
def test_names_that_lead_outside_are_refused(kind: str, ckpts: Path, tmp_path: Path) -> None:
    (checkpoint,) = save(ckpts, 1)
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    name = {
        "within the folder's parents": "../../../../outside.txt",
        "absolute": str(outside),
        "through the folder itself": "unet/../../../../../outside.txt",
    }[kind]
    assert (checkpoint / name).samefile(outside)
    manifest = read_manifest(checkpoint)
    entry = {"size": outside.stat().st_size, "sha256": file_sha256(outside)}
    write_manifest(checkpoint, {**manifest, "files": {**manifest["files"], name: entry}})
    before = contents(tmp_path)
    point, message = find_named(str(checkpoint), ckpts)
    assert point is None
    assert "unusable names or sizes of files" in message
    assert checkpoints_of(RUN_ID, ckpts) == []
    assert contents(tmp_path) == before


@pytest.mark.parametrize("entry", [None, 1, [], {}, {"size": "1", "sha256": ""}, {"size": 1, "sha256": None}])
def test_unusable_entries_of_files(entry: object, ckpts: Path) -> None:
    (checkpoint,) = save(ckpts, 1)
    manifest = read_manifest(checkpoint)
    write_manifest(checkpoint, {**manifest, "files": {**manifest["files"], "x": entry}})
    assert "unusable names or sizes of files: ['x']" in find_named(str(checkpoint), ckpts)[1]


@pytest.mark.parametrize("text", ["", "[", "[]", "1", "null", "{}", '{"files": []}', "[" * 100_000, "1" * 10_000])
def test_a_manifest_that_is_none(text: str, ckpts: Path) -> None:
    (checkpoint,) = save(ckpts, 1)
    (checkpoint / MANIFEST).write_text(text)
    point, message = find_named(str(checkpoint), ckpts)
    assert point is None
    assert f"{checkpoint / MANIFEST} is damaged: " in message
    assert "\n" not in message


def test_a_pipe_for_a_manifest_is_not_waited_for(ckpts: Path) -> None:
    (checkpoint,) = save(ckpts, 1)
    (checkpoint / MANIFEST).unlink()
    os.mkfifo(checkpoint / MANIFEST)
    assert "is damaged: not a regular file" in find_named(str(checkpoint), ckpts)[1]


def test_a_newer_format_is_said_whatever_else_it_holds(ckpts: Path) -> None:
    (checkpoint,) = save(ckpts, 1)
    content = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps({**content, "format": 2, CHECKSUM: "of another kind"}))
    assert "has format 2; this ed-train reads format 1; upgrade ed-train" in find_named(str(checkpoint), ckpts)[1]


# The real command


CUT = {"max_steps": 2, "no_prepend_last": True}
GO_ON = {"resume": "latest", "max_steps": "null", "no_prepend_last": False}
"""What `CUT` says is in the checkpoint and would count again."""


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "optimizer_te.pt", MANIFEST])
def test_the_command_passes_over_a_damaged_checkpoint(file: str, runner: Runner, undisturbed: Any) -> None:
    runner.run(**EVERY_STEP, **CUT, save_optimizer=True)
    newest = runner.checkpoints[-1]
    DAMAGES["one bit"](newest / file)
    before = contents(newest.parent)
    output = runner.run(resume=newest, expect=2)
    (line,) = (text for text in output.splitlines() if text.startswith("error: "))
    assert line.startswith("error: --resume: ")
    assert str(newest) in line
    assert file in line
    output = runner.run(**GO_ON, save_optimizer=True)
    assert f"passed over: {newest}" in output
    assert "goes on at step 1, " in output
    assert {path: now for path, now in contents(newest.parent).items() if path in before} == before
    assert_equal_runs(undisturbed(save_optimizer=True), runner.last)


def test_checkpoints_in_another_folder(runner: Runner, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    settings = {"save_ckpt_dir": elsewhere, "save_optimizer": True}
    runner.run(**settings, **{**GO_ON, **CUT})
    (run,) = (tmp_path / "runs" / "logs").iterdir()
    output = runner.run(**settings, **{**GO_ON, **CUT, "max_steps": 4})
    assert "goes on at step 2, " in output
    assert f"run folder: {run}\n" in output
    run.rename(tmp_path / "aside")
    output = runner.run(**settings, **GO_ON)
    assert "goes on at step 4, " in output
    (folder,) = (tmp_path / "runs" / "logs").iterdir()
    assert f"run folder: {folder}\n" in output
    for checkpoint in elsewhere.iterdir():
        check_files(checkpoint, read_manifest(checkpoint))
    last = elsewhere / "last-myproj-ep02-gs00008"
    assert read_manifest(last)["run_folder"] == str(folder)
    assert sorted(p.name for p in elsewhere.iterdir()) == [last.name, "myproj-ep01-gs00002", "myproj-ep01-gs00004"]
