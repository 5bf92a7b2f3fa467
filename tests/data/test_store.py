from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from ed_train.data.store import TensorStore
from ed_train.errors import ConfigError


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), float(len(name))) for name in names}


def test_what_is_added_is_there_now_and_after_reopening(tmp_path):
    store = TensorStore(tmp_path / "new" / "cache")
    added = {"a": torch.randn(8, 4, 4), "b": torch.arange(77)}
    store.add(added)
    for opened in (store, TensorStore(tmp_path / "new" / "cache")):
        assert "a" in opened
        assert "c" not in opened
        for key, tensor in added.items():
            assert torch.equal(opened.get(key), tensor)
            assert opened.get(key).dtype == tensor.dtype
        with pytest.raises(KeyError):
            opened.get("c")
        assert opened.used == set((tmp_path / "new" / "cache").iterdir())


def test_adding_nothing_writes_nothing(tmp_path):
    TensorStore(tmp_path).add({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_pack_is_left_out_with_a_warning_and_made_again(tmp_path, caplog, share):
    store = TensorStore(tmp_path)
    store.add(tensors("a", "b"))
    (damaged,) = tmp_path.iterdir()
    damaged.write_bytes(damaged.read_bytes()[: int(damaged.stat().st_size * share)])
    store.add(tensors("c"))
    opened = TensorStore(tmp_path)
    assert ["a" in opened, "c" in opened] == [False, True]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{damaged}: damaged, its entries are made again: ")
    opened.add(tensors("a"))
    assert "a" in TensorStore(tmp_path)


def test_foreign_files_in_the_folder_do_not_disturb(tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(os.urandom(999))
    (tmp_path / "other.txt").write_text("x")
    (tmp_path / "folder.safetensors").mkdir()
    TensorStore(tmp_path).add(tensors("a"))
    assert "a" in TensorStore(tmp_path)


WRITER = """
import sys, torch
from pathlib import Path
from ed_train.data.store import TensorStore
store = TensorStore(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    store.add({f"{sys.argv[2]}{i}": torch.full((300, 300), float(i))})
"""


def start_writer(folder, name: str, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(folder), name, str(count)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_runs_may_share_a_folder(tmp_path):
    mine = TensorStore(tmp_path)
    writer = start_writer(tmp_path, "x", 10)
    for i in range(10):
        mine.add({f"y{i}": torch.tensor([i])})
    assert writer.wait(60) == 0
    assert "x0" not in mine
    mine.refresh()
    assert [mine.get(f"x{i}")[0, 0].item() for i in range(10)] == list(range(10))
    assert [mine.get(f"y{i}").item() for i in range(10)] == list(range(10))


def test_killed_at_any_moment_what_is_there_is_whole(tmp_path, caplog):
    writer = start_writer(tmp_path, "x", 100_000)
    while not any(tmp_path.glob("*.safetensors")):
        assert writer.poll() is None
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    writer.wait(60)
    store = TensorStore(tmp_path)
    present = [i for i in range(100_000) if f"x{i}" in store]
    assert present == list(range(len(present)))
    assert present
    assert all((store.get(f"x{i}") == i).all() for i in present)
    assert caplog.records == []


def test_the_older_of_two_packs_keeps_a_key(tmp_path):
    for value in range(6):
        TensorStore(tmp_path / "elsewhere").add({"a": torch.tensor([value])})
        (pack,) = (tmp_path / "elsewhere").iterdir()
        kept = pack.rename(tmp_path / f"{9 - value}.safetensors")
        os.utime(kept, (1000 + value, 1000 + value))
    assert TensorStore(tmp_path).get("a").item() == 0


def test_stale_temporary_files_are_removed_and_fresh_ones_kept(tmp_path):
    old, new = (f"{letter * 32}.safetensors.{'0' * 32}.tmp" for letter in "ab")
    for name, age in ((old, 2 * 24 * 3600), (new, 0), ("foreign.tmp", 2 * 24 * 3600)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    TensorStore(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new, "foreign.tmp"}


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE")
def test_a_full_disk_leaves_the_store_as_it_was(tmp_path):
    import resource

    store = TensorStore(tmp_path)
    store.add(tensors("a"))
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            ConfigError, match=r"the cache cannot be written: file too large; free some space or choose"
        ):
            store.add({"big": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before
    assert "big" not in store
    store.add({"big": torch.zeros(1000)})


def test_a_cache_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file: cannot be used as a cache folder: file exists; choose another one"):
        TensorStore(tmp_path / "file")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.7, 0.99])
def test_no_changed_bit_of_a_pack_gets_through(tmp_path, caplog, share):
    """In its header or in its tensors: what it held is as it was, or counts as missing and is made again."""
    added = {
        "a" * 64: torch.randn(8, 4, 4),
        "b" * 64: torch.arange(77),
        "c" * 64: torch.ones(3, 2, dtype=torch.bfloat16),
    }
    TensorStore(tmp_path).add(added)
    (pack,) = tmp_path.iterdir()
    content = bytearray(pack.read_bytes())
    for bit in range(8):
        content[int(len(content) * share)] ^= 1 << bit
        pack.write_bytes(content)
        opened = TensorStore(tmp_path)
        missing = [key for key in added if key not in opened]
        assert missing
        assert all(torch.equal(opened.get(key), added[key]) for key in added if key not in missing)
        opened.add({key: added[key] for key in missing})
        caplog.clear()
        again = TensorStore(tmp_path)
        assert all(key in again and torch.equal(again.get(key), added[key]) for key in added)
        assert not any("entries of it" in message for message in caplog.messages), "a sound copy is there"
        for path in again.used - {pack}:
            path.unlink()
        content[int(len(content) * share)] ^= 1 << bit


def test_damaged_entries_are_said_once_for_each_pack(tmp_path, caplog):
    TensorStore(tmp_path).add({name: torch.full((9,), 1.0) for name in "abc"})
    (pack,) = tmp_path.iterdir()
    content = pack.read_bytes()
    pack.write_bytes(content[:-36] + bytes(36))  # one of the three
    store = TensorStore(tmp_path)
    assert sorted(name in store for name in "abc") == [False, True, True]
    pack.write_bytes(content[:-108] + bytes(108))
    caplog.clear()
    store = TensorStore(tmp_path)
    assert [name in store for name in "abc" for _ in range(2)] == [False] * 6
    assert caplog.messages == [f"{pack}: entries of it are damaged; they are made again"]
