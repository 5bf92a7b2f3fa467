"""Lines about settings that do little or other than they seem to, with this model and these pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ed_train.config.run import RunConfig
    from ed_train.data.epochs import Epochs


def advice_for(run: RunConfig, epochs: Epochs, *, processes: int, velocity: bool) -> Iterator[str]:
    """A line for each of them.

    Args:
        run: the run's configuration.
        epochs: what the epochs consist of.
        processes: how many train together.
        velocity: whether the model predicts v and not the noise.
    """
    train, batches = run.train, epochs.batches(0)
    size = train.batch_size * processes
    if size > 1 and epochs.partial_batches == batches:
        factors = f"batch_size {train.batch_size}" + (f" x {processes} processes" if processes > 1 else "")
        yield f"every batch is filled up with repeats, and counts for less: no size has {size} pictures ({factors})"
    if train.grad_accum > batches:
        yield f"grad_accum {train.grad_accum} is more than an epoch's batches ({batches}): a step averages over those"
    if train.enable_zero_terminal_snr and not velocity:
        source = f"enable_zero_terminal_snr=true ({run.sources['enable_zero_terminal_snr']})"
        yield f"{source} is for models that predict v; this one predicts the noise, and pure noise teaches it nothing"
