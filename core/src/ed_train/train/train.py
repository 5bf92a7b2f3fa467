"""The training loop."""

from __future__ import annotations

import time

from ed_train.config.run import RunConfig
from ed_train.errors import EdTrainError
from ed_train.train.precision import tweak_scaler
from ed_train.train.session import Session
from ed_train.train.setup import start
from ed_train.train.step import StepResult, train_step

MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED_IN_A_ROW_FP16 = 40
"""fp16's gradient scale starts so large that the first steps overflow until it is halved often enough."""


def train(run: RunConfig) -> None:
    """Train as configured, from loading the model to the checkpoint at the end.

    Raises:
        ConfigError: the data, the model or the plugins do not fit the configuration.
        EdTrainError: training cannot go on, or a checkpoint cannot be written.
    """
    session, report = start(run)
    try:
        if run.samples.generate_pretrain_samples:
            session.sample("before")
        for epoch in range(session.epochs):
            for window in session.windows(epoch):
                result = train_step(session, window)
                after_step(session, result, epoch)
                if session.step == session.total_steps:
                    break
            after_epoch(session, epoch)
        session.sample("after")
        session.save(session.epochs, last=True)
    finally:
        session.close()
    report.show_end(session)


def after_step(session: Session, result: StepResult, epoch: int) -> None:
    """Count and log a step; samples and checkpoints where they are due.

    Raises:
        EdTrainError: too many steps in a row had gradients that are not finite.
    """
    train = session.run.train
    session.step += 1
    session.metrics.after_step(session.step, result, session.components, session.mean_over_processes)
    if result.skipped:
        _skipped(session, result)
    else:
        session.skipped_in_a_row = 0
    if session.scaler and session.run.grad_scaler_tweaks:
        tweak_scaler(session.scaler, session.step)
    if train.sample_steps and session.step % train.sample_steps == 0 and session.step < session.total_steps:
        session.sample(f"step{session.step:05d}")
    minutes = train.ckpt_every_n_minutes
    if minutes and session.output and time.monotonic() - session.output.last_saved > 60 * minutes:
        session.save(epoch)


def after_epoch(session: Session, epoch: int) -> None:
    """Count an epoch; a checkpoint where it is due. The one at the end is written by `train`."""
    train, done = session.run.train, epoch + 1
    session.metrics.epoch_bar.update()
    due = train.save_every_n_epochs and done % train.save_every_n_epochs == 0
    if due and done >= train.save_ckpts_from_n_epochs and done < session.epochs:
        session.save(done)


def _skipped(session: Session, result: StepResult) -> None:
    session.skipped += 1
    session.skipped_in_a_row += 1
    names = " and ".join(result.skipped)
    files = ", ".join(sorted({path.name for path in result.files}))
    if not session.scaler:  # whose overflows are in the nature of fp16
        session.metrics.say(f"warning: step {session.step}: gradients of {names} are not finite; skipped ({files})")
    limit = MAX_SKIPPED_IN_A_ROW_FP16 if session.scaler else MAX_SKIPPED_IN_A_ROW
    if session.skipped_in_a_row >= limit:
        raise EdTrainError(
            f"training stopped at step {session.step}: gradients of {names} were not finite in {limit} steps in a row; "
            f"lower the lr, set clip_grad_norm or look at the pictures of the last batch: {files}"
        )
