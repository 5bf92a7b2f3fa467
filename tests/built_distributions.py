"""Build the distributions as they would be published, and install them as users do. For tests/packaging."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Distribution:
    """One distribution of this repository and what was built from it.

    Attributes:
        folder: the project's folder.
        sdist: the source distribution.
        wheel: the wheel made from the source distribution, as pip makes it.
        wheel_of_folder: the wheel made from the folder itself.
    """

    folder: Path
    sdist: Path
    wheel: Path
    wheel_of_folder: Path

    @property
    def pyproject(self) -> dict[str, Any]:
        with open(self.folder / "pyproject.toml", "rb") as file:
            return tomllib.load(file)

    @property
    def name(self) -> str:
        return str(self.pyproject["project"]["name"])

    @property
    def package(self) -> str:
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has every library, and of ed-train only what was installed into it."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, libraries: Path) -> Environment:
        """A new one without ed-train; `libraries` is where it finds everything else."""
        venv.create(folder, symlinks=True, with_pip=False)
        (site_packages,) = folder.glob("lib/python*/site-packages")
        (site_packages / "libraries.pth").write_text(f"{libraries}\n")
        return cls(folder)

    def python(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return run(str(self.folder / "bin" / "python"), *arguments, cwd=cwd)

    def ed_train(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return run(str(self.folder / "bin" / "ed-train"), *arguments, cwd=cwd)

    def pip_install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = ("--quiet", "--disable-pip-version-check", "--no-index")
        return self.python("-m", "pip", "install", *options, *arguments)


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program without what pip, Python or ed-train find in the variables of this environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "ED_TRAIN"))}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def build(folder: Path, into: Path, *what: str) -> list[Path]:
    """Build a project without a network; an sdist and a wheel of it if `what` names neither."""
    before = set(into.glob("*"))
    done = run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(into), str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(set(into.glob("*")) - before)


def projects() -> list[str]:
    """The folder of every distribution, relative to the repository: the core, each plugin, the example."""
    patterns = ("core", "plugins/*", "examples/*")
    folders = [file.parent for pattern in patterns for file in ROOT.glob(f"{pattern}/pyproject.toml")]
    return sorted(str(folder.relative_to(ROOT)) for folder in folders)
