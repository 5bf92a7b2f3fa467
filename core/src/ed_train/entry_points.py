"""Find the entry points of installed plugins.

`importlib.metadata` could do it. But its import alone would take a third of the time of ``--list-optimizers`` (and
pathlib's another 5 ms), and one malformed file of any distribution, ours or not, makes it fail for all of them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

from ed_train.errors import PluginError


class EntryPoint(NamedTuple):
    """One line of a distribution's entry_points.txt.

    Attributes:
        distribution: the name of the distribution in its normalized form, e.g. ``ed-train-lion``.
        value: ``package.module`` or ``package.module:object``.
        requires: what the distribution says about its dependencies, a line each, e.g. ``ed-train<0.2,>=0.1``.
    """

    distribution: str
    version: str
    name: str
    value: str
    requires: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import the module and return it, or the object in it.

        Raises:
            PluginError: the entry point has no such form. Whatever the import raises passes through.
        """
        module, _, path = (part.strip() for part in self.value.partition("[")[0].partition(":"))
        if not all(name.isidentifier() for name in module.split(".")):
            raise PluginError(f"its entry point {self.name!r} is {self.value!r}; expected the name of a module")
        found: Any = import_module(module)
        for name in filter(None, path.split(".")):
            found = getattr(found, name)
        return found


def find_entry_points(group: str) -> list[EntryPoint]:
    """Every entry point of a group, sorted. Of two distributions of one name the first on sys.path counts."""
    return sorted(entry for folder in _distributions() for entry in _read(folder, group))


def normalized(distribution: str) -> str:
    """The form in which the names of distributions are compared."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _distributions() -> Iterator[str]:
    """The metadata folder of every distribution on sys.path."""
    seen = set()
    for folder in sys.path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:  # python311.zip, or a folder that is gone
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                key = normalized(re.split(r"-|\.egg-info", name)[0])
                if key not in seen:
                    seen.add(key)
                    yield os.path.join(folder, name)


def _read(folder: str, group: str) -> Iterator[EntryPoint]:
    section = ""
    requires: tuple[str, ...]
    distribution, version, requires = "", "", ()
    for line in map(str.strip, _text(folder, "entry_points.txt").splitlines()):
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == group and line and not line.startswith(("#", ";")):
            if not distribution:
                distribution, version, requires = _metadata(folder)
            name, _, value = (part.strip() for part in line.partition("="))
            yield EntryPoint(distribution, version, name, value, requires)


def _metadata(folder: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and requirements of a distribution."""
    metadata = _text(folder, "METADATA") or _text(folder, "PKG-INFO")
    header = metadata.partition("\n\n")[0]  # behind it comes the README
    fields = dict(re.findall(r"^(Name|Version): *(\S+)", header, re.MULTILINE))
    requires = tuple(re.findall(r"^Requires-Dist: *(.+?) *$", header, re.MULTILINE))
    return normalized(fields.get("Name", "unknown")), fields.get("Version", "unknown"), requires


def _text(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
