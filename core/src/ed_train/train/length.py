"""How long a run is: its epochs, their batches, its optimizer steps."""

from __future__ import annotations

from ed_train.config.train_keys import TrainConfig
from ed_train.data.epochs import Epochs, Fading
from ed_train.train.resume import BEGINNING, Position


def fading_of(train: TrainConfig) -> Fading | None:
    """How later epochs leave pictures out; None where they do not."""
    return Fading(train.rated_dataset_target_dropout_percent, train.max_epochs) if train.rated_dataset else None


def nothing_left(step: int) -> str:
    """The line about a run that goes on from its end."""
    return f"nothing is left to train after step {step}; a larger max_epochs or max_steps goes on"


def count_steps(train: TrainConfig, lengths: Epochs, position: Position = BEGINNING) -> tuple[int, int]:
    """The optimizer steps and the epochs of a whole run.

    Args:
        train: the settings.
        lengths: the batches of each epoch.
        position: where the run goes on.
    """
    limit = train.max_steps or 2**63
    step, epoch, done = position.step, position.epoch, position.batches_done
    while epoch < train.max_epochs and step < limit:
        steps = -(-max(0, lengths.batches(epoch) - done) // train.grad_accum)
        alike = 1 if done or lengths.fading else min(train.max_epochs - epoch, -(-(limit - step) // steps))
        step, epoch, done = step + steps * alike, epoch + alike, 0
    return min(step, limit), epoch + bool(done)
