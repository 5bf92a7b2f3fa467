"""The run's folder: where it is, and what is written to it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ed_train.config.checks import output_problem
from ed_train.config.ema import EMA_RECORD, ema_folder
from ed_train.config.record import configuration_of
from ed_train.config.resume import EMA_FILE, STATE_FILE
from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.data.files import reason, write_atomic
from ed_train.errors import CheckpointError, ConfigError, EdTrainError, NonFiniteWeightsError
from ed_train.models.atomic import clean_partials
from ed_train.models.grid import Sample, sample_grid
from ed_train.models.samples import draw_samples, save_samples
from ed_train.models.save import weights_of
from ed_train.train.checkpoint import (
    CheckpointWriter,
    Snapshot,
    checkpoints_of,
    fits_in_memory,
    manifest_header,
    unused,
)
from ed_train.train.ema import averaged
from ed_train.train.optimizer_state import optimizer_record
from ed_train.train.run_folder import Home
from ed_train.train.single_files import SINGLE_FILE
from ed_train.train.state import OPTIMIZER_FILES, on_cpu, size_of

if TYPE_CHECKING:
    from ed_train.train.session import Session

MAX_FAILED_SAVES = 3
"""In a row; training then stops, since it would be lost with the next crash."""


class Output:
    """Folders of one run; only the main process has one and writes.

    Attributes:
        folder: ``LOGDIR/NAME``: metrics, samples and, unless save_ckpt_dir says otherwise, checkpoints.
        checkpoints: the folder of the checkpoints.
        run_id: tells the checkpoints of this run from those of others; a resumed run keeps it.
        last_saved: when the last checkpoint was begun, of time.monotonic.
    """

    def __init__(self, run: RunConfig, home: Home) -> None:
        """Prepare to write. Raises EdTrainError if no checkpoint could be saved."""
        train, resume = run.train, run.resume
        self.folder, self._home = home.folder, home
        self.run_id = str(resume.manifest["run_id"]) if resume else secrets.token_hex(8)
        checkpoints = Path(train.save_ckpt_dir) if train.save_ckpt_dir else self.folder / "ckpts"
        if not train.save_nothing and (
            problem := output_problem(checkpoints)
        ):  # that of a run that somebody else began
            raise EdTrainError(f"the folder of the checkpoints: {problem}, or begin a new run")
        if checkpoints.is_dir():
            clean_partials(checkpoints)
        clean_partials(self.folder)
        self.writer = CheckpointWriter(
            checkpoints, train.keep_last_n_ckpts, train.save_optimizer, checkpoints_of(self.run_id, checkpoints)
        )
        self.last_saved = time.monotonic()
        self._failures = 0
        self._saved_step = -1
        self._scheduled_epoch = -1

    @property
    def saved(self) -> list[Path]:
        """The whole checkpoints of this run, oldest first."""
        return self.writer.saved

    def save(self, session: Session, state: Mapping[str, Any], *, last: bool = False) -> None:
        """Write a checkpoint: a diffusers folder, the training state, and a manifest with checksums.

        It is copied in memory and written while training goes on, if the memory allows; else training waits.
        It appears under its name only when it is whole.

        Args:
            session: its modules and optimizers are in evaluation mode.
            state: what `training_state` collected.
            last: this is the end of the run, or of this part of it: wait until it is written.

        Raises:
            EdTrainError: it cannot be written, and `last`, or as often before; or weights are not finite.
        """
        self.settle(session)
        if session.step == self._saved_step:
            return
        self.last_saved, self._saved_step = time.monotonic(), session.step
        components = session.components
        size = sum(size_of(c.module.state_dict()) + size_of(c.optimizer.state_dict()) for c in components)
        size += size_of(session.ema.averages) if session.ema else 0
        self._write(session, size, lambda copy: self.snapshot(session, state, copy=copy, last=last), fatal=last)

    def save_best(self, session: Session, size: int, take: Callable[[bool], Snapshot]) -> None:
        """Write the best weights so far, `size` bytes, as `save` does; `take` takes them, and a copy if told so."""
        self.settle(session)
        self._write(session, size, take, fatal=False)

    def _write(self, session: Session, size: int, take: Callable[[bool], Snapshot], *, fatal: bool) -> None:
        copy = not fatal and fits_in_memory(size)
        try:
            snapshot = take(copy)
        except ConfigError as error:  # the model's own folder is gone, and so is every checkpoint
            self._failed(session, CheckpointError(f"no checkpoint was saved: {error}"), fatal=fatal)
            return
        session.model.close()
        self.writer.submit(snapshot)
        if not copy:
            self.after_save(session, self._waited(session, fatal=fatal))

    def poll(self, session: Session) -> None:
        """Say what has been saved, or not, since the last time. Raises EdTrainError as `save` does."""
        if not self.writer.busy:
            self.settle(session)

    def settle(self, session: Session) -> None:
        """The same, after what is being written is."""
        self.after_save(session, self._waited(session))

    def after_save(self, session: Session, saved: Path | None) -> None:
        if saved:
            self._failures = 0
            session.model.spare = saved if saved in self.saved else session.model.spare
            session.metrics.say(f"saved {saved}{' and its EMA, ' + ema_folder(saved).name if session.ema else ''}")
            while self.writer.lines:
                session.metrics.say(self.writer.lines.pop(0))

    def last_good(self) -> str:
        """Says which checkpoint to go on from."""
        with suppress(CheckpointError):
            self.writer.wait()
        return f"the last good checkpoint is {self.saved[-1]}" if self.saved else "there is no good checkpoint"

    def _waited(self, session: Session, *, fatal: bool = False) -> Path | None:
        try:
            return self.writer.wait()
        except NonFiniteWeightsError as error:
            raise EdTrainError(f"training stopped at step {session.step}: {error}; {self.last_good()}") from error
        except CheckpointError as error:
            self._failed(session, error, fatal=fatal)
            return None

    def _failed(self, session: Session, error: CheckpointError, *, fatal: bool) -> None:
        self._failures, self._saved_step = self._failures + 1, -1
        if fatal:
            raise error
        if self._failures >= MAX_FAILED_SAVES:
            message = f"training stopped at step {session.step} after {self._failures} failed saves in a row: {error}"
            raise EdTrainError(message) from error
        session.metrics.say(f"warning: {error}; training goes on")

    def snapshot(self, session: Session, state: Mapping[str, Any] | None, *, copy: bool, last: bool) -> Snapshot:
        """What a checkpoint holds; without `state`, the weights alone."""
        train, model = session.run.train, session.model
        prefix = "last-" if last and session.done and not train.no_prepend_last else ""
        name = f"{prefix}{train.project_name}-{session.place}"
        components = [] if state is None else session.components
        states: dict[str, Any] = {OPTIMIZER_FILES[c.name]: c.optimizer.state_dict() for c in components}
        if session.ema:
            states[EMA_FILE] = session.ema.state_dict()
        states = on_cpu(states) if copy else states
        unet = session.accelerator.unwrap_model(session.unet)
        weights = {
            UNET: weights_of(unet, copy=copy and UNET in session.run.components),
            TEXT_ENCODER: session.text.weights(copy=copy and TEXT_ENCODER in session.run.components),
        }
        return Snapshot(
            target=unused(self.writer.folder / name, self.run_id),
            pipeline={
                **weights,
                "vae": model.copyable("vae") or model.load_vae(),
                "tokenizer": model.copyable("tokenizer") or model.load_tokenizer(),
                "scheduler_config": model.scheduler_config(zero_terminal_snr=train.enable_zero_terminal_snr),
            },
            states={STATE_FILE: state, **states} if state is not None else {},
            manifest=self._manifest(session),
            averaged=averaged(weights, states[EMA_FILE]) if session.ema else None,
        )

    def _manifest(self, session: Session) -> dict[str, Any]:
        """What a later resume must know about a checkpoint, beside the sizes and checksums of its files."""
        train = session.run.train
        single_file = train.save_single_file and not train.no_save_ckpt
        return {
            **manifest_header(train.project_name, self.run_id, self.folder),
            "step": session.step,
            "epoch": session.epoch,
            "batches_done": session.batches_done,
            "batch_number": session.batch_number,
            "data": session.loader.fingerprint(session.epoch),
            "processes": session.accelerator.num_processes,
            **({EMA_RECORD: {"begun": session.ema.plan.begun}} if session.ema else {}),
            **({SINGLE_FILE: "full" if train.save_full_precision else "half"} if single_file else {}),
            "optimizers": {c.name: optimizer_record(c) for c in session.components},
            "run": configuration_of(session.run),
        }

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and let others use the folder."""
        self.writer.close()
        self._home.lock.release()

    def write_schedule(self, session: Session) -> None:
        """Write the epoch's batches into ``schedule.jsonl``: a line each, with its pictures, crops and captions.

        They replace what an interrupted part of the run has written of this epoch, and of later ones.
        """
        path, epoch = self.folder / "schedule.jsonl", session.epoch
        lines = [json.dumps(batch, ensure_ascii=False) + "\n" for batch in session.loader.described(epoch)]
        try:
            if epoch == self._scheduled_epoch:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            else:
                write_atomic(path, "".join([*_lines_before(path, epoch), *lines]).encode())
            self._scheduled_epoch = epoch + 1
        except (OSError, ValueError) as error:
            session.metrics.say(f"warning: {path} cannot be written: {reason(error)}; training goes on")

    def sample(self, session: Session, name: str, tag: str) -> None:
        """Draw the sample pictures into ``samples`` of the run's folder, and a labelled grid of them.

        Args:
            session: with the weights to draw them with.
            name: begins the names of the files.
            tag: begins the pictures' names in the metrics.
        """
        self.settle(session)  # saving may remove the checkpoint that has the VAE's files
        settings = session.run.samples
        title = f"{session.run.train.project_name}: {name}, step {session.step} ({settings.scheduler}, "
        try:
            samples = self._drawn(session)
            for sample in samples:
                session.metrics.picture(f"{tag}/{sample.stem}", sample.image, session.step)
            grid = sample_grid(samples, f"{title}{settings.num_inference_steps} steps of denoising)")
            session.metrics.picture(f"{tag}/grid", grid, session.step)
            line = f"samples {save_samples(samples, grid, self.folder / 'samples', name)[-1]}"
        except (OSError, ConfigError) as error:
            line = f"warning: no samples of {name}: {reason(error)}; training goes on"
        except torch.OutOfMemoryError:
            less = "smaller pictures, or a smaller batch_size in the prompts' file, take less"
            line = f"warning: no samples of {name}: the device's memory is full; {less}; training goes on"
        session.metrics.say(line)

    @staticmethod
    def _drawn(session: Session) -> list[Sample]:
        train, model = session.run.train, session.model
        with closing(model), session.text.whole() as text_encoder:
            return draw_samples(
                session.run.samples,
                unet=session.accelerator.unwrap_model(session.unet, keep_fp32_wrapper=True),
                text_encoder=text_encoder,
                vae=model.load_vae(),
                tokenizer=model.load_tokenizer(),
                scheduler_config=model.scheduler_config(zero_terminal_snr=train.enable_zero_terminal_snr),
                device=session.accelerator.device,
                resolution=train.resolution,
                clip_skip=train.clip_skip,
                captions=session.loader.captions,
                autocast=session.accelerator.autocast,
            )


def _lines_before(path: Path, epoch: int) -> list[str]:
    """The lines of a schedule that are of earlier epochs; a last one that was cut short is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n") and json.loads(line)["epoch"] < epoch]
