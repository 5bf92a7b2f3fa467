"""Take changed settings over at the beginning of an epoch, in all processes together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ed_train.config.reload import reread
from ed_train.errors import CheckpointError
from ed_train.train.record import write_record

if TYPE_CHECKING:
    from ed_train.config.train_keys import TrainConfig
    from ed_train.train.session import Session


def reload_settings(session: Session) -> None:
    """With load_settings_every_epoch: read train.json again if an epoch is about to begin; all processes together.

    An epoch that goes on in its middle has the settings that the run was resumed with.
    """
    run = session.run
    if not run.train.load_settings_every_epoch or run.settings_file is None or session.batches_done:
        return
    from accelerate.utils import broadcast_object_list

    changed, lines = reread(run, session.epoch + 1) if session.output else (run, [])
    for line in lines:
        session.metrics.say(line)
    (train,) = broadcast_object_list([changed.train])  # one file, read by one: not by each at another moment
    session.run = replace(changed, train=train)
    if train != run.train:
        _take_over(session, train)


def _take_over(session: Session, train: TrainConfig) -> None:
    """Give the settings to those who have a copy of them, and write down what the run does from here on."""
    session.diffusion.train = train
    session.metrics.log_step = train.log_step
    if output := session.output:
        output.writer.keep, output.writer.keep_states = train.keep_last_n_ckpts, train.save_optimizer
        precision = session.accelerator.mixed_precision
        try:
            write_record(output.folder, session.run, session.accelerator, precision, session.step)
        except CheckpointError as error:
            session.metrics.say(f"warning: {error}; training goes on")
    if session.validator:
        for note in session.validator.redefine(train):
            session.metrics.say(f"note: {note}")
        session.validator.begin(session)  # as a run does that goes on from here
