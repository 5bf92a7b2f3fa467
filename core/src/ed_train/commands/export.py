"""``ed-train --export FOLDER [FILE]``: a checkpoint as the single file that other programs read. Trains nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ed_train.config.checks import find_input, output_problem
from ed_train.config.describe import show
from ed_train.config.resume import STATE_FILES, not_a_checkpoint
from ed_train.errors import CheckpointError, ConfigError, Problem

if TYPE_CHECKING:
    from ed_train.commands.arguments import Arguments
    from ed_train.models.reference import ModelReference

FLAG = "--export"
PRECISION = "save_full_precision"
SUFFIX = ".safetensors"


def export_command(arguments: Arguments) -> None:
    """Run the command. Raises ConfigError for flags that mean nothing with it, and as `export` does."""
    flags = dict(arguments.flags)
    given = flags.pop(PRECISION, "false").lower()
    problems = [Problem(f"--{flag}", "", f"has no effect with {FLAG}; remove it") for flag in flags]
    if arguments.config:
        problems.append(Problem("--config", "", f"has no effect with {FLAG}; remove it"))
    if given not in ("true", "false"):
        problems.append(Problem(f"--{PRECISION}", "", f"got {show(given)}; expected true or false"))
    if problems:
        raise ConfigError(problems)
    export(*arguments.operands, full_precision=given == "true", overwrite=arguments.overwrite)


def export(folder: str, file: str | None = None, *, full_precision: bool = False, overwrite: bool = False) -> None:
    """Write a model as a single file in the original Stable Diffusion layout, and print what was written.

    Args:
        folder: a checkpoint, its moving average, or any other diffusers folder of Stable Diffusion 1 or 2.
        file: the file, or an existing folder to put it into; beside `folder` and named as it is if None.
        full_precision: float32 instead of float16.
        overwrite: whether the file may exist.

    Raises:
        ConfigError: the folder holds no such model or is damaged, or the file cannot be written there.
        CheckpointError: the disk is full or failing, or a weight has no finite value in half precision.
    """
    source, reference, problems = _find_source(folder)
    target = _target(source or Path(folder), file)
    problems += _problems_of_target(target, _predicts_v(reference.path) if reference else False, overwrite)
    if problems or source is None or reference is None:
        raise ConfigError([Problem(FLAG, "", problem) for problem in problems])
    print("\n".join(_write(source, reference, target, full_precision, overwrite)))


def _find_source(folder: str) -> tuple[Path | None, ModelReference | None, list[str]]:
    """The folder and the model in it, or what is wrong with them."""
    from ed_train.models.reference import SUFFIXES, check_model

    source, message = find_input(folder, Path())
    if source is None:
        return None, None, [f"{message}; expected a checkpoint or a diffusers folder"]
    source = Path(os.path.abspath(source))
    if source.suffix.lower() in SUFFIXES and source.is_file():
        return source, None, [f"{source} is a single file already; expected a checkpoint or a diffusers folder"]
    if not source.is_dir():
        return source, None, [f"{source} is not a folder; expected a checkpoint or a diffusers folder"]
    if message := not_a_checkpoint(source) or _damage(source):
        return source, None, [message]
    reference, messages = check_model(str(source), base=Path(), model_config=None)
    return source, reference, messages


def _damage(folder: Path) -> str:
    """What is wrong with the files of a checkpoint; the training state is not looked at, for it is not exported."""
    from ed_train.models.atomic import check_files

    try:
        if manifest := _manifest(folder):
            files = {name: entry for name, entry in manifest["files"].items() if name not in STATE_FILES}
            check_files(folder, {"files": files})
    except CheckpointError as error:
        return f"{error}; export another checkpoint"
    return ""


def _manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint; empty for any other folder."""
    from ed_train.models.atomic import MANIFEST, read_manifest

    return read_manifest(folder) if (folder / MANIFEST).exists() else {}


def _predicts_v(folder: Path) -> bool:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8-sig"))
    return bool(config.get("prediction_type") == "v_prediction")


def _target(source: Path, file: str | None) -> Path:
    if file is None:
        return source.with_name(source.name + SUFFIX)
    target = Path(file).expanduser().absolute()
    return target / (source.name + SUFFIX) if target.is_dir() else target


def _problems_of_target(target: Path, predicts_v: bool, overwrite: bool) -> list[str]:
    if target.suffix != SUFFIX:
        return [f"got {target.name}; expected a file that ends in {SUFFIX}, or an existing folder"]
    second = [target.with_suffix(".yaml")] if predicts_v else []
    for path in (target, *second):
        try:
            if path.is_dir() or (path.exists() and not overwrite):
                return [f"{path} already exists; give another name, or --overwrite to replace it"]
        except (OSError, ValueError) as error:
            return [f"{path} is not a usable path: {error}"]
    problem = output_problem(target.parent)
    return [problem] if problem else []


def _write(source: Path, reference: ModelReference, target: Path, full: bool, overwrite: bool) -> list[str]:
    """Write the file; returns lines for the user."""
    import torch

    from ed_train.models.export import write_single_file
    from ed_train.models.file_info import architecture, ends_in_noise
    from ed_train.models.load import SdModel
    from ed_train.models.save import as_weights

    model = SdModel(reference)
    scheduler, text_encoder = model.scheduler_config(), as_weights(model.load_text_encoder())
    written = write_single_file(
        target,
        unet=model.load_unet(),
        text_encoder=text_encoder,
        vae=model.load_vae(),
        scheduler_config=scheduler,
        dtype=torch.float32 if full else torch.float16,
        title=source.name,
        manifest=_manifest(source),
        replace=overwrite,
    )
    kind = f"{architecture(text_encoder.config, scheduler)}, {'full' if full else 'half'} precision"
    lines = [f"wrote {target}: {kind}, {target.stat().st_size / 1e6:,.1f} MB"]
    if written[1:]:
        lines.append(f"wrote {written[1]}: says that the model predicts v; keep it beside the file, under its name")
    if ends_in_noise(scheduler):
        lines.append("note: the model was trained with zero terminal SNR; set that in the program that draws with it")
    return lines
