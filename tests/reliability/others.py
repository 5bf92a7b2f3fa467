"""A run of a user who is not root: root may read and write everything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def own_world(folder: Path, world: dict[str, object]) -> dict[str, object]:
    """Settings of a run that another user can make, with everything that is written in one folder of theirs."""
    folder.chmod(0o755)
    copies = {key: folder / key for key in ("resume_ckpt", "data_root")}
    for key, copy in copies.items():
        shutil.copytree(str(world[key]), copy, copy_function=shutil.copyfile)  # which anybody may read
        copy.chmod(0o755)
    optimizers = shutil.copyfile(str(world["optimizer_config"]), folder / "optimizer.json")
    (folder / "own").mkdir()
    if os.geteuid() == 0:
        os.chown(folder / "own", 65534, 65534)
    own = {"cache_dir": folder / "own" / "cache", "logdir": folder / "own" / "logs"}
    return {**world, **copies, **own, "optimizer_config": optimizers}
