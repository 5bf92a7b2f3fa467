"""Let all processes of a run begin alike: each has read the files by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ed_train.config.run import RunConfig
from ed_train.errors import EdTrainError

if TYPE_CHECKING:
    from accelerate import Accelerator


def agreed(run: RunConfig, accelerator: Accelerator) -> RunConfig:
    """The run with the main process's seed, which for -1 each has drawn for itself; all must call it together.

    Raises:
        EdTrainError: they would go on from different checkpoints, as where one was saved while they looked for it.
    """
    if accelerator.num_processes == 1:
        return run
    from accelerate.utils import gather_object

    found = {key: run.resume.manifest[key] for key in ("run_id", "step", "saved_ns")} if run.resume else None
    of_all = gather_object([(run.train.seed, found)])
    if any(checkpoint != found for _, checkpoint in of_all):
        where = run.resume.checkpoint if run.resume else "none"
        message = f"the processes of this run have found different checkpoints to go on from; this one: {where}"
        raise EdTrainError(f"{message}; name the one that you mean as --resume")
    return replace(run, train=replace(run.train, seed=of_all[0][0]))
