from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ed_train.data.files import write_atomic
from ed_train.errors import CheckpointError
from ed_train.models import atomic
from ed_train.models.atomic import atomic_file, atomic_folder, clean_partials

SAVE = """
import os, signal, sys
from pathlib import Path
from ed_train.models.atomic import atomic_folder

def kill_at(moment):
    left = [int(moment)]
    def wrapped(function):
        def counted(*args, **kwargs):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*args, **kwargs)
        return counted
    for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "rename"), (Path, "chmod"), (Path, "write_text")):
        setattr(owner, name, wrapped(getattr(owner, name)))
    return left

left = kill_at(sys.argv[2])
with atomic_folder(Path(sys.argv[1])) as temp:
    (temp / "unet").mkdir()
    (temp / "unet" / "weights").write_text("w" * 100_000)
    (temp / "state").write_text("s" * 1000)
print(1000 - left[0])
"""


def save_in_a_child(target: Path, moment: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SAVE, str(target), str(moment)], capture_output=True, text=True)


def save_here(target: Path, then: Callable[[], object], write: Any = atomic_folder) -> None:
    """A save in which `then` happens after half of the work."""
    with write(target) as temp:
        (temp / "half" if temp.is_dir() else temp).write_text("half")
        then()


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def check_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del files["manifest.json"]
    assert {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    return manifest


def partials(parent: Path) -> list[Path]:
    return list(parent.glob(".*.partial-*"))


def test_a_folder_appears_whole_with_a_manifest(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "step-9"
    extra: dict[str, Any] = {"step": 9}
    with atomic_folder(target, extra) as temp:
        assert temp.parent == target.parent
        assert temp.name.startswith(".step-9.partial-")
        (temp / "unet").mkdir()
        (temp / "unet" / "weights").write_bytes(b"w" * 3_000_000)
        (temp / "unet" / "weights").chmod(0o600)
        (temp / "é.json").write_text("{}")
        extra["loss"] = 0.5
        assert not target.exists()
    manifest = check_manifest(target)
    assert (manifest["format"], manifest["step"], manifest["loss"]) == (1, 9, 0.5)
    assert list(manifest["files"]) == ["unet/weights", "é.json"]
    assert {p.stat().st_mode & 0o777 for p in target.rglob("*") if p.is_file()} == {0o644}
    assert partials(target.parent) == []


def test_every_file_and_folder_is_synced_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name) or fsync(fd)
    )
    monkeypatch.setattr(Path, "rename", lambda self, target: events.append("RENAME") or rename(self, target))
    with atomic_folder(tmp_path / "step-9") as temp:
        (temp / "unet").mkdir()
        (temp / "unet" / "weights").write_text("w")
    at = events.index("RENAME")
    assert sorted(events[:at]) == sorted(["weights", "manifest.json", "unet", temp.name])
    assert events[at + 1 :] == [tmp_path.name]


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "broken link"])
def test_a_target_that_exists_is_not_touched(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "step-9"
    if kind == "file":
        target.write_text("mine")
    elif kind == "broken link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
    for write in (atomic_folder, atomic_file):
        with pytest.raises(CheckpointError, match=r"step-9 already exists and is not overwritten"), write(target):
            pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["step-9"]


def test_a_target_that_appears_meanwhile_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "step-9"
    with pytest.raises(CheckpointError, match="already exists"):
        save_here(target, target.mkdir)
    assert os.listdir(tmp_path) == ["step-9"]
    assert os.listdir(target) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed\nwriting file")]
)
def test_a_failing_disk_becomes_a_checkpoint_error_and_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        save_here(tmp_path / "step-9", raising(error))
    assert str(caught.value) in (
        f"{tmp_path}/step-9 was not saved: No space left on device",
        f"{tmp_path}/step-9 was not saved: PytorchStreamWriter failed writing file",
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError, CheckpointError])
def test_other_errors_stay_what_they_are_and_leave_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        save_here(tmp_path / "step-9", raising(error("x")))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
@pytest.mark.parametrize("code", [5, 13, 30], ids=["EIO", "EACCES", "EROFS"])
def test_eio_eacces_erofs_at_any_call(call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os if call == "fsync" else Path, call, failing)
    with pytest.raises(CheckpointError, match=os.strerror(code)), atomic_folder(tmp_path / "step-9") as temp:
        (temp / "state").write_text("s")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_mount_without_modes_that_cannot_sync_folders(code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared folders of virtual machines and Windows' drives under Linux are such; all else is as on any other."""
    real = os.fsync

    def files_alone(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    def refusing(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fsync", files_alone)
    monkeypatch.setattr(Path, "chmod", refusing)
    with atomic_folder(tmp_path / "step-9") as temp:
        (temp / "state").write_text("s")
    check_manifest(tmp_path / "step-9")
    write_atomic(tmp_path / "used.json", b"{}")
    assert sorted(os.listdir(tmp_path)) == ["step-9", "used.json"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    for write in (atomic_folder, atomic_file):
        with pytest.raises(CheckpointError, match=r"runs/step-9 was not saved: "), write(tmp_path / "runs" / "step-9"):
            pytest.fail("the block must not run")


def test_a_single_file(tmp_path: Path) -> None:
    target = tmp_path / "out" / "model.safetensors"
    with atomic_file(target) as temp:
        temp.write_text("whole")
        temp.chmod(0o600)
        assert not target.exists()
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o644
    assert os.listdir(target.parent) == ["model.safetensors"]


def test_a_single_file_that_fails(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not saved: full"):
        save_here(tmp_path / "model", raising(OSError("full")), write=atomic_file)
    assert os.listdir(tmp_path) == []


def test_kill_9_at_each_stage_of_a_save(tmp_path: Path) -> None:
    """Killed before any system call of the save, the final name is absent, or stands for the whole."""
    whole = save_in_a_child(tmp_path / "all", 1000)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout)
    assert calls >= 12
    found = []
    for moment in range(calls):
        target = tmp_path / f"step-{moment}"
        assert save_in_a_child(target, moment).returncode == -signal.SIGKILL
        found.append(target.exists())
        if target.exists():
            assert list(check_manifest(target)["files"]) == ["state", "unet/weights"]
    assert found == [False] * (calls - 1) + [True]  # the last call syncs the parent, after the rename
    assert len(partials(tmp_path)) >= calls - 3
    clean_partials(tmp_path)
    assert partials(tmp_path) == []
    assert len(os.listdir(tmp_path)) == 2


def test_clean_partials_spares_the_living_and_everything_else(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = atomic._here()
    names = [f".step-{n}.partial-{here}-{pid}" for n, pid in enumerate((dead.pid, os.getpid(), os.getppid()), 1)]
    for name in (*names, ".step-4.partial-x", "step-5.partial-1", ".partial-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / f".model.safetensors.partial-{here}-{dead.pid}").write_text("x")
    removed = clean_partials(tmp_path)
    assert [p.name for p in removed] == [f".model.safetensors.partial-{here}-{dead.pid}", *sorted(names[:2])]
    assert sorted(os.listdir(tmp_path)) == sorted([names[2], ".step-4.partial-x", "step-5.partial-1", ".partial-1"])
    assert clean_partials(tmp_path / "nothing here") == []


@pytest.mark.parametrize("pid", ["its own", "nobody's", "another's"])
def test_what_another_host_is_writing_is_spared_for_a_day(pid: str, tmp_path: Path) -> None:
    """Process ids of other hosts and containers say nothing here: there, most trainers are number 1."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    number = {"its own": os.getpid(), "nobody's": dead.pid, "another's": os.getppid()}[pid]
    left = tmp_path / f".step-1.partial-01234567-{number}"
    for folder in (left, older := tmp_path / f".step-1.partial-{number}"):
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "weights").write_text("half")
    with atomic_folder(tmp_path / "step-1"):
        pass
    assert clean_partials(tmp_path) == []
    long_ago = time.time() - 25 * 3600
    for folder in (left, older):
        for path in (folder / "unet", folder):
            os.utime(path, (long_ago, long_ago))
    assert clean_partials(tmp_path) == [], "a file in it is still being written"
    os.utime(left / "unet" / "weights", (long_ago, long_ago))
    assert clean_partials(tmp_path) == [left]
    assert partials(tmp_path) == [older]


def test_containers_do_not_disturb_each_others_saves(tmp_path: Path) -> None:
    """Each of them is process 1 where it lives, on a host of one name."""
    container = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("a process may not have process ids of its own here")
    script = """
import os, sys, time
from pathlib import Path
from ed_train.models.atomic import atomic_folder, clean_partials

folder, name = Path(sys.argv[1]), sys.argv[2]
assert os.getpid() == 1
assert clean_partials(folder) == []
with atomic_folder(folder / name) as temp:
    (temp / "half").write_text("half")
    print("half", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [*container, sys.executable, "-c", script, str(tmp_path), "step-1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as first:  # fmt: skip
        assert first.stdout
        assert first.stdout.readline() == "half\n"
        second = [*container, sys.executable, "-c", script, str(tmp_path), "step-1"]
        subprocess.run(second, input="\n", text=True, check=True, capture_output=True)
        _, errors = first.communicate("\n")
    assert "step-1 already exists and is not overwritten" in errors
    check_manifest(tmp_path / "step-1")
    assert partials(tmp_path) == []


def test_a_leftover_of_a_process_with_the_same_id_is_replaced(tmp_path: Path) -> None:
    """In containers a restarted trainer often has the id of the one that was killed."""
    left = tmp_path / f".step-9.partial-{atomic._here()}-{os.getpid()}"
    left.mkdir()
    (left / "stale").write_text("x")
    with atomic_folder(tmp_path / "step-9") as temp:
        (temp / "fresh").write_text("x")
    assert sorted(os.listdir(tmp_path / "step-9")) == ["fresh", "manifest.json"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    assert atomic.file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
