"""Paths as users and records should see them."""

from __future__ import annotations

import os
from pathlib import Path


def straight(path: Path) -> Path:
    """An absolute path without ``..``, which does not depend on the folders that it led through.

    Where one of these is a link, the folder above its target is another one, and the path stays as it is.

    Args:
        path: something that exists.
    """
    short = Path(os.path.normpath(path.absolute()))
    try:
        return short if short.samefile(path) else path.absolute()
    except OSError:
        return path.absolute()
