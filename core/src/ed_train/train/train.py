"""The training loop."""

from __future__ import annotations

import time
from contextlib import closing
from signal import SIGTERM

from ed_train.config.run import RunConfig
from ed_train.train.length import nothing_left
from ed_train.train.precision import tweak_scaler
from ed_train.train.processes import failures_named
from ed_train.train.reload import reload_settings
from ed_train.train.session import Session
from ed_train.train.setup import start
from ed_train.train.signals import Interrupted, StopSignals
from ed_train.train.skipped import note_result
from ed_train.train.step import StepResult, train_step


def train(run: RunConfig) -> None:
    """Train as configured, from loading the model to the checkpoint at the end.

    Raises:
        ConfigError: the data, the model or the plugins do not fit the configuration.
        EdTrainError: training cannot go on, or a checkpoint cannot be written.
        Interrupted: a signal came; the step was finished and saved.
    """
    with failures_named(), StopSignals() as signals:
        session, report = start(run, signals)
        with signals.deferred():
            try:
                if session.validator:
                    session.validator.begin(session)
                if run.samples.generate_pretrain_samples and not session.step:
                    session.sample("before")
                stopped = session.agree(bool(signals.number))[0]
                while not session.done and not stopped:
                    reload_settings(session)
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
    note_result(session, result)
    if session.ema and not result.skipped:
        session.ema.after_step(session.step - (0 if result.unread else session.skipped))
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
    stop, due = session.agree(bool(session.signals.number), _due(session, epoch_ended))
    if due and not stop and not session.done:
        session.save()
    return stop


def finish(session: Session) -> None:
    """Draw the last samples and save: at the end of the run, or because of a signal, which leaves no time for samples.

    Raises:
        EdTrainError: the checkpoint cannot be written.
    """
    if session.step == session.first_step:
        done = nothing_left(session.step)
        session.metrics.say(done if session.done else "no step was taken")
        return
    if session.done and not session.signals.number:
        session.sample("after")
    session.save(last=True)
    if session.run.train.save_nothing and not session.done:
        session.metrics.say("note: nothing was saved: save_nothing is set")
    session.accelerator.wait_for_everyone()  # a launcher ends the others as soon as one has left: not while one writes


def _due(session: Session, epoch_ended: bool) -> bool:
    """Whether a checkpoint is wanted now; by the clock, that is for the main process to say."""
    train, output = session.run.train, session.output
    epochs, steps, minutes = train.save_every_n_epochs, train.save_every_n_steps, train.ckpt_every_n_minutes
    by_epoch = epoch_ended and epochs and session.epoch % epochs == 0
    return bool(
        (by_epoch and session.epoch >= train.save_ckpts_from_n_epochs)
        or (steps and session.step % steps == 0)
        or (minutes and output and time.monotonic() - output.last_saved > 60 * minutes)
    )
