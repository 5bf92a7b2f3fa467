"""The run's folder: where it is, and what is written to it."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ed_train.config.run import RunConfig
from ed_train.errors import EdTrainError
from ed_train.models.atomic import atomic_folder, clean_partials
from ed_train.models.samples import draw_samples, save_samples
from ed_train.models.save import write_pipeline

if TYPE_CHECKING:
    from ed_train.data.loader import BatchLoader
    from ed_train.train.session import Session

STATE_FILES = {"unet": "optimizer_unet.pt", "text_encoder": "optimizer_te.pt"}


class Output:
    """Folders of one run; only the main process has one and writes.

    Attributes:
        folder: ``LOGDIR/NAME``: metrics, samples and, unless save_ckpt_dir says otherwise, checkpoints.
        checkpoints: the folder of the checkpoints.
        saved: the checkpoints that this run has written, oldest first.
    """

    def __init__(self, run: RunConfig) -> None:
        """Create the run's folder, under a name that no other run has."""
        train = run.train
        name = train.run_name or f"{train.project_name}_{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder = _new_folder(Path(train.logdir), name)
        self.checkpoints = Path(train.save_ckpt_dir) if train.save_ckpt_dir else self.folder / "ckpts"
        self.saved: list[Path] = []
        self.last_saved = time.monotonic()
        if self.checkpoints.is_dir():
            clean_partials(self.checkpoints)

    def save(self, session: Session, epoch: int, *, last: bool = False) -> Path:
        """Write a checkpoint: a diffusers folder, the optimizers' state if wanted, and a manifest with checksums.

        It appears under its name only when it is complete.

        Raises:
            CheckpointError: it cannot be written, or weights are not finite.
        """
        train = session.run.train
        prefix = "last-" if last and not train.no_prepend_last else ""
        name = f"{prefix}{train.project_name}-ep{epoch:02d}-gs{session.step:05d}"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        target = _unused(self.checkpoints / name)
        with atomic_folder(target, extra=_manifest(session, epoch)) as folder:
            model = session.model
            write_pipeline(
                folder,
                unet=session.accelerator.unwrap_model(session.unet),
                text_encoder=session.accelerator.unwrap_model(session.text_encoder),
                vae=model.copyable("vae") or model.load_vae(),
                tokenizer=model.copyable("tokenizer") or model.load_tokenizer(),
                scheduler_config=model.scheduler_config(zero_terminal_snr=train.enable_zero_terminal_snr),
            )
            if train.save_optimizer:
                for component in session.components:
                    torch.save(component.optimizer.state_dict(), folder / STATE_FILES[component.name])
        self.saved.append(target)
        self.last_saved = time.monotonic()
        return target

    def write_schedule(self, loader: BatchLoader, epoch: int) -> None:
        """Append an epoch's batches to ``schedule.jsonl``: a line each, with its pictures, crops and captions."""
        with (self.folder / "schedule.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(batch, ensure_ascii=False) + "\n" for batch in loader.described(epoch))

    def sample(self, session: Session, name: str) -> None:
        """Draw the sample pictures into ``samples`` of the run's folder, and a labelled grid of them."""
        train, model = session.run.train, session.model
        samples = draw_samples(
            session.run.samples,
            unet=session.accelerator.unwrap_model(session.unet, keep_fp32_wrapper=True),
            text_encoder=session.accelerator.unwrap_model(session.text_encoder, keep_fp32_wrapper=True),
            vae=model.load_vae(),
            tokenizer=model.load_tokenizer(),
            scheduler_config=model.scheduler_config(zero_terminal_snr=train.enable_zero_terminal_snr),
            device=session.accelerator.device,
            resolution=train.resolution,
            clip_skip=train.clip_skip,
            captions=session.loader.captions,
            autocast=session.accelerator.autocast,
        )
        scales = len(session.run.samples.cfgs)  # a row for each prompt, if it is drawn with several
        paths = save_samples(samples, self.folder / "samples", name, columns=scales if scales > 1 else 4)
        for sample in samples:
            session.metrics.picture(f"samples/{sample.stem}", sample.image, session.step)
        session.metrics.say(f"samples {paths[-1]}")


def _manifest(session: Session, epoch: int) -> dict[str, Any]:
    """What a later resume must know about a checkpoint, beside the sizes and checksums of its files."""
    optimizers = {
        c.name: {
            "optimizer": c.config.optimizer.spec.name,
            "distribution": c.config.optimizer.distribution,
            "version": c.config.optimizer.version,
            "parameters": c.parameter_names,
        }
        for c in session.components
    }
    return {"step": session.step, "epoch": epoch, "batch_number": session.batch_number, "optimizers": optimizers}


def _new_folder(parent: Path, name: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise EdTrainError(f"logdir: the run's folder {parent / name} cannot be made: {error.strerror}") from error
    raise AssertionError("itertools.count never ends")


def _unused(path: Path) -> Path:
    """The path, or with -2, -3, ... behind it where it is taken."""
    candidates = (path.with_name(f"{path.name}-{n}" if n > 1 else path.name) for n in itertools.count(1))
    return next(candidate for candidate in candidates if not candidate.exists())
