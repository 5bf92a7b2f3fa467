"""The training loop."""

from __future__ import annotations

import time
from contextlib import closing
from signal import SIGTERM

from ed_train.config.run import RunConfig
from ed_train.errors import EdTrainError
from ed_train.train.precision import tweak_scaler
from ed_train.train.session import Session, lost_process_named
from ed_train.train.setup import start
from ed_train.train.signals import Interrupted, StopSignals
from ed_train.train.step import LOSS, StepResult, train_step

MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED_IN_A_ROW_FP16 = 40
"""fp16's gradient scale starts so large that the first steps overflow until it is halved often enough."""


def train(run: RunConfig) -> None:
    """Train as configured, from loading the model to the checkpoint at the end.

    Raises:
        ConfigError: the data, the model or the plugins do not fit the configuration.
        EdTrainError: training cannot go on, or a checkpoint cannot be written.
        Interrupted: a signal came; the step was finished and saved.
    """
    with lost_process_named(), StopSignals() as signals:
        session, report = start(run, signals)
        with signals.deferred():
            try:
                if session.validator:
                    session.validator.begin(session)
                if run.samples.generate_pretrain_samples and not session.step:
                    session.sample("before")
                stopped = not session.step and session.agree(bool(signals.number))[0]
                while not session.done and not stopped:
                    with closing(session.windows()) as windows:  # an error ends the loader's thread at once, too
                        for window in windows:
                            result = train_step(session, window)
                            stopped = after_step(session, result, len(window))
                            if stopped or session.done:
                                break
                finish(session)
            finally:
                session.close()
        report.show_end(session)
        if not session.done:
            raise Interrupted(signals.number or SIGTERM)  # which another process may have got


def after_step(session: Session, result: StepResult, batches: int) -> bool:
    """Count and log a step; samples and checkpoints where they are due.

    Returns:
        Whether somebody wants the run to stop.

    Raises:
        EdTrainError: too many steps in a row had gradients that are not finite, or too many saves have failed.
    """
    train = session.run.train
    epoch_ended = session.count(batches)
    session.metrics.after_step(session.step, result, session.components, session.mean_over_processes)
    if result.skipped:
        _skipped(session, result)
    else:
        session.skipped_in_a_row = 0
        if session.ema:
            session.ema.after_step(session.step - session.skipped)
    if session.scaler and session.run.grad_scaler_tweaks:
        tweak_scaler(session.scaler, session.step)
    if session.validator:
        session.validator.after_step(session)
    if train.sample_steps and session.step % train.sample_steps == 0 and not session.done:
        session.sample(f"step{session.step:05d}")
    if epoch_ended:
        session.metrics.epoch_bar.update()
    if session.output:
        session.output.poll(session)
    minutes, output = train.ckpt_every_n_minutes, session.output
    due = bool(minutes and output and time.monotonic() - output.last_saved > 60 * minutes)
    stop, due = session.agree(bool(session.signals.number), due or (epoch_ended and _due(session)))
    if due and not stop and not session.done:
        session.save()
    return stop


def finish(session: Session) -> None:
    """Draw the last samples and save: at the end of the run, or because of a signal, which leaves no time for samples.

    Raises:
        EdTrainError: the checkpoint cannot be written.
    """
    if session.step == session.first_step:
        session.metrics.say("nothing is left to train" if session.done else "no step was taken")
        return
    if session.done and not session.signals.number:
        session.sample("after")
    session.save(last=True)
    if session.run.train.no_save_ckpt and not session.done:
        session.metrics.say("note: nothing was saved: no_save_ckpt is set")
    session.accelerator.wait_for_everyone()  # a launcher ends the others as soon as one has left: not while one writes


def _due(session: Session) -> bool:
    """Whether the epoch that has just ended is one after which a checkpoint is wanted."""
    train, done = session.run.train, session.epoch
    every = train.save_every_n_epochs
    return bool(every and done % every == 0 and done >= train.save_ckpts_from_n_epochs)


def describe_skipped(result: StepResult) -> str:
    """What was not finite: ``the loss is``, ``gradients of unet and text_encoder are``."""
    return "the loss is" if result.skipped == (LOSS,) else f"gradients of {' and '.join(result.skipped)} are"


def _skipped(session: Session, result: StepResult) -> None:
    session.skipped += 1
    session.skipped_in_a_row += 1
    names = describe_skipped(result)
    files = ", ".join(sorted({path.name for path in result.files}))
    if not session.scaler:  # whose overflows are in the nature of fp16
        session.metrics.say(f"warning: step {session.step}: {names} not finite; step skipped ({files})")
    limit = MAX_SKIPPED_IN_A_ROW_FP16 if session.scaler else MAX_SKIPPED_IN_A_ROW
    if session.skipped_in_a_row >= limit:
        raise EdTrainError(
            f"training stopped at step {session.step}: {names} not finite, {limit} steps in a row; "
            f"lower the lr, set clip_grad_norm or look at the pictures of the last batch: {files}"
            f"{f'; {session.output.last_good()}' if session.output else ''}"
        )
