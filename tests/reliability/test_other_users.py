"""Files and folders of somebody else, who lets nobody in: one line that names them, before anything is trained."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from reliability.driver import Runner
from reliability.others import own_world
from reliability.sabotage import become_nobody


@pytest.fixture(scope="module")
def others(world: dict[str, object]) -> Iterator[dict[str, object]]:
    """Settings of another user's run; not in pytest's folders, which are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        yield own_world(Path(name), world)


@pytest.fixture
def run(others: dict[str, object], tmp_path: Path) -> Callable[..., str]:
    runner = Runner(tmp_path, others)
    return lambda expect, **settings: runner.run(become_nobody, expect=expect, **settings)


@contextmanager
def closed(path: Path, mode: int = 0) -> Iterator[None]:
    """For this block, a path of this process's user with such a mode."""
    before = path.stat()
    if os.geteuid() == 0:
        os.chown(path, 0, 0)
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before.st_mode & 0o7777)
        if os.geteuid() == 0:
            os.chown(path, before.st_uid, before.st_gid)


@pytest.mark.parametrize(
    ("inner", "mode", "named"),
    [
        ("", 0, "model_index.json"),
        ("", 0o444, "model_index.json"),
        ("unet", 0, "unet/config.json"),
        ("tokenizer", 0, "tokenizer/tokenizer_config.json"),
        ("text_encoder/config.json", 0, "text_encoder/config.json"),
        ("vae/diffusion_pytorch_model.safetensors", 0, "vae/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_model_that_may_not_be_read(inner: str, mode: int, named: str, others, run) -> None:
    model = Path(str(others["resume_ckpt"]))
    with closed(model / inner, mode):
        (line,) = run(2).splitlines()
    assert line.startswith(f'error: --resume_ckpt: "{model / named}"')
    assert line.endswith(": Permission denied")
    assert line.count(named) == 1


def test_a_model_in_a_folder_that_may_not_be_read(others, run) -> None:
    folder = Path(str(others["resume_ckpt"])).parent / "closed"
    (folder / "model").mkdir(parents=True)
    with closed(folder):
        (line,) = run(2, resume_ckpt=folder / "model").splitlines()
    assert line == f'error: --resume_ckpt: "{folder / "model"}": {folder} cannot be read: Permission denied'


@pytest.fixture(scope="module")
def checkpoint(others: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another user, after two steps."""
    runner = Runner(tmp_path_factory.mktemp("other"), {**others, "max_steps": 2})
    runner.run(become_nobody)
    return runner.last


@pytest.mark.parametrize("inner", ["..", ".", "manifest.json", "training_state.pt", "../.."])
def test_checkpoints_that_may_not_be_read(inner: str, checkpoint: Path, run) -> None:
    place = (checkpoint / inner).resolve()
    with closed(place):
        latest = run(0, resume="latest", max_steps=1, save_nothing=True)
        named = run(2, resume=checkpoint)
    (line,) = [line for line in latest.splitlines() if "passed over: " in line]
    assert str(place.parent) in line
    assert place.name in line
    assert line.endswith(" cannot be read: Permission denied")
    (line,) = named.splitlines()
    assert line.startswith("error: --resume: ")
    assert str(checkpoint)[:40] in line
    assert line.endswith("Permission denied")


@pytest.mark.parametrize("key", ["logdir", "save_ckpt_dir"])
def test_checkpoints_that_could_not_be_written(key: str, checkpoint: Path, others, run) -> None:
    """Said before training, which would be lost."""
    folder = checkpoint.parent
    own = {} if key == "logdir" else {"save_ckpt_dir": folder}
    with closed(folder, 0o755):
        if key == "logdir":
            run(0, resume="latest", max_steps=3, save_nothing=True)
        *_, line = run(1 if key == "logdir" else 2, resume="latest", max_steps=3, **own).splitlines()
    assert f"{folder} is not writable; choose another folder" in line
    assert "error: " in line
