"""How large a cache is, what is removed from it, and what never is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from ed_train.cli import main
from ed_train.data.cache_folder import CacheFolder, keep_within, shown_size
from ed_train.data.store import TensorStore

DAY = 24 * 3600


@pytest.fixture
def packs(tmp_path: Path) -> list[Path]:
    """Three packs of about 40 KB, of 30, 20 and 10 days ago, and files that are none of ours."""
    found = []
    for kind, days in (("latents", 30), ("tokens", 20), ("text", 10)):
        store = TensorStore(tmp_path / kind)
        store.add({kind: torch.zeros(10_000)})
        (path,) = store.used
        os.utime(path, (time.time() - days * DAY,) * 2)
        found.append(path)
    foreign = ["notes.txt", "latents/model.safetensors", "tokens/0123.safetensors", "other/" + found[0].name]
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "latents" / ("f" * 32 + ".safetensors")).symlink_to(tmp_path / "notes.txt")
    return found


def foreign(folder: Path) -> int:
    return sum(path.is_file() and path.read_bytes() == b"mine" for path in folder.rglob("*"))


def clear(*arguments: object) -> int:
    return main(["--clear-cache", *map(str, arguments)])


def test_clearing_removes_everything_of_ours_and_nothing_else(packs, tmp_path, capsys) -> None:
    assert clear("--cache_dir", tmp_path) == 0
    assert capsys.readouterr().out == f"{tmp_path}: removed 3 files, 0.1 MB; 0 files, 0.0 MB stay\n"
    assert [path for path in packs if path.exists()] == []
    assert foreign(tmp_path) == 5


def test_clearing_what_is_old_keeps_what_was_used_since(packs, tmp_path, capsys) -> None:
    CacheFolder(tmp_path).mark_used(packs[:1])  # written 30 days ago, and used now
    (tmp_path / "config.json").write_text(f'{{"cache_dir": "{tmp_path}", "resume_ckpt": "nowhere"}}')
    assert clear(15, "--config", tmp_path / "config.json") == 0
    assert "removed 1 file, 0.0 MB that no run has used for 15 days; 2 files" in capsys.readouterr().out
    assert [path.exists() for path in packs] == [True, False, True]


def test_what_killed_processes_left_half_written_goes_when_it_is_old(packs, tmp_path) -> None:
    young, old = (tmp_path / "text" / f"{letter * 32}.safetensors.{'0' * 32}.tmp" for letter in "ab")
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    assert clear("--cache_dir", tmp_path) == 0
    assert (young.exists(), old.exists()) == (True, False)


def test_wrong_input_and_no_cache(tmp_path, capsys) -> None:
    assert clear("soon", "--lr", 1) == 2
    error = capsys.readouterr().err
    assert "--lr: has no effect with --clear-cache; remove it" in error
    assert '--clear-cache: got "soon"; expected a number of days from 0' in error
    assert clear("--logdir", tmp_path) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}: there is no cache\n"


def test_a_run_goes_on_while_its_cache_is_cleared(packs, tmp_path) -> None:
    store = TensorStore(tmp_path / "text")
    assert clear("--cache_dir", tmp_path) == 0
    assert torch.equal(store.get("text"), torch.zeros(10_000))
    assert "text" not in TensorStore(tmp_path / "text")


def test_nothing_is_removed_while_a_run_opens_the_cache(packs, tmp_path, capsys) -> None:
    with CacheFolder(tmp_path).being_opened(), CacheFolder(tmp_path).being_opened():
        assert clear("--cache_dir", tmp_path) == 1
        assert f"{tmp_path}: a run is filling or opening this cache; nothing was removed" in capsys.readouterr().err
        first, second = keep_within(tmp_path, packs[:1], max_gb=1e-9)
        assert "3 files" in first
        assert second.startswith("cache_max_gb: nothing was removed, since another run is opening the cache")
        assert all(path.exists() for path in packs)
    assert clear("--cache_dir", tmp_path) == 0
    assert [path for path in packs if path.exists()] == []


def test_the_limit_removes_what_was_not_used_for_longest(packs, tmp_path) -> None:
    lines = keep_within(tmp_path, packs[:1], max_gb=90_000 / 1e9)
    assert [path.exists() for path in packs] == [True, False, True]
    assert lines == [
        f"cache: {tmp_path}: 2 files, 0.1 MB, of which this run uses 1 file, 0.0 MB; "
        "1 file, 0.0 MB unused for longest were removed (cache_max_gb 9e-05)"
    ]


def test_what_the_run_needs_stays_whatever_the_limit(packs, tmp_path) -> None:
    _, remark = keep_within(tmp_path, packs, max_gb=1e-9)
    assert all(path.exists() for path in packs)
    assert remark == "the cache is larger than cache_max_gb 1e-09, since this run needs all of it"


def test_a_damaged_record_of_uses_is_made_anew(packs, tmp_path, caplog) -> None:
    (tmp_path / "used.json").write_text("[1]")
    assert len(CacheFolder(tmp_path).packs()) == 3
    assert "damaged" in caplog.text
    CacheFolder(tmp_path).mark_used(packs)
    caplog.clear()
    assert all(pack.used > time.time() - DAY for pack in CacheFolder(tmp_path).packs())
    assert caplog.text == ""


def test_sizes_for_people() -> None:
    assert [shown_size(n) for n in (0, 4e4, 1.2e6, 4e7, 2.34e9)] == ["0.0 MB", "0.0 MB", "1.2 MB", "40 MB", "2.3 GB"]


@pytest.mark.slow
def test_a_run_says_how_large_its_cache_is_and_keeps_to_the_limit(run_cli, tmp_path, capsys) -> None:
    own = {"cache_dir": tmp_path / "own", "max_steps": 1, "save_nothing": True, "disable_textenc_training": True}
    assert run_cli(**own) == 0
    assert f"cache: {tmp_path / 'own'}: 3 files, " in capsys.readouterr().out
    assert run_cli(**own, resolution=128, cache_max_gb=1e-9) == 0
    output = capsys.readouterr().out
    assert "1 file, 0.0 MB unused for longest were removed (cache_max_gb 1e-09)" in output  # the latents at 64 px
    assert "the cache is larger than cache_max_gb 1e-09, since this run needs all of it" in output
    assert len(list((tmp_path / "own" / "latents").glob("*.safetensors"))) == 1
