"""Environments in which tests install plugins as their authors do, without touching the one that the tests run in."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

SITE_PACKAGES = sysconfig.get_path("purelib")


@dataclass
class Environment:
    """A virtual environment that sees everything that is installed here.

    Attributes:
        folder: its own folder.
        cwd: where commands run.
    """

    folder: Path
    cwd: Path

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell; stderr goes into stdout. pip finds what it needs here, without a network."""
        path = os.pathsep.join((str(self.folder / "bin"), os.environ["PATH"]))
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
        for name in ("PYTHONPATH", "VIRTUAL_ENV", "ED_TRAIN_PLUGINS"):
            environment.pop(name, None)
        return subprocess.run(
            ["sh", "-c", command], env=environment, cwd=self.cwd, text=True, check=False, timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def make_environment(folder: Path) -> Environment:
    """Make an environment in `folder`; commands run in the folder ``work`` beside it."""
    pytest.importorskip("pip", reason="installs with pip, which uv's environments lack")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (purelib,) = folder.glob("lib/python*/site-packages")
    (purelib / "outer.pth").write_text(f"import site; site.addsitedir({SITE_PACKAGES!r})\n")
    offline = "install -qq --disable-pip-version-check --no-index --no-build-isolation"
    _script(folder / "bin" / "ed-train", f'exec {shlex.quote(str(python))} -m ed_train "$@"')
    _script(folder / "bin" / "pip", f'shift; exec {shlex.quote(str(python))} -m pip {offline} "$@"')
    work = folder.parent / "work"
    work.mkdir()
    return Environment(folder, work)


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def install_module(folder: Path, module: str, source: str, *, requires: str = "ed-train") -> None:
    """What installing a plugin of one module leaves in `folder`: the module, metadata and an entry point."""
    distribution = f"ed-train-{module.removeprefix('ed_train_').replace('_', '-')}"
    metadata = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    lines = ("Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0", f"Requires-Dist: {requires}")
    (metadata / "METADATA").write_text("\n".join(lines) + "\n")
    (metadata / "entry_points.txt").write_text(f"[ed_train]\n{module.removeprefix('ed_train_')} = {module}\n")
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
