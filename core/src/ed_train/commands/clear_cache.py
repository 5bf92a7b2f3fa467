"""``ed-train --clear-cache [DAYS]``: remove what runs have cached, or what no run has used for some days."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ed_train.config.describe import show
from ed_train.config.load import load_cache_dir
from ed_train.data.cache_folder import CacheFolder, CacheInUseError, total
from ed_train.data.files import reason, shown
from ed_train.errors import ConfigError, EdTrainError, Problem

if TYPE_CHECKING:
    from ed_train.commands.arguments import Arguments

FLAG = "--clear-cache"
WHERE = ("cache_dir", "logdir")


def clear_cache(arguments: Arguments) -> None:
    """Run the command: print what was removed, and what stays.

    Raises:
        ConfigError: DAYS is no number, or flags mean nothing with this command.
        EdTrainError: a file cannot be removed, or a run is opening the cache.
    """
    problems = [
        Problem(f"--{flag}", "", f"has no effect with {FLAG}; remove it")
        for flag in arguments.flags
        if flag not in WHERE
    ]
    days = _days(*arguments.operands)
    if days is None:
        problems.append(Problem(FLAG, "", f"got {show(arguments.operands[0])}; expected a number of days from 0"))
    if days is None or problems:
        raise ConfigError(problems)
    cache = CacheFolder(load_cache_dir(arguments.flags, arguments.config))
    if not cache.folder.is_dir():
        print(f"{shown(cache.folder)}: there is no cache")
        return
    try:
        gone = cache.clear(days)
    except CacheInUseError as error:
        message = "a run is filling or opening this cache; nothing was removed; try again when it has begun to train"
        raise EdTrainError(f"{shown(cache.folder)}: {message}") from error
    except OSError as error:
        raise EdTrainError(f"{error.filename} cannot be removed: {reason(error)}") from error
    unused = f" that no run has used for {days:g} days" if days else ""
    print(f"{shown(cache.folder)}: removed {total(gone)}{unused}; {total(cache.packs())} stay")


def _days(text: str = "0") -> float | None:
    try:
        days = float(text)
    except ValueError:
        return None
    return days if 0 <= days < math.inf else None
