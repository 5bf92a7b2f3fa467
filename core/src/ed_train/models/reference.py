"""Find the model that ``resume_ckpt`` names and see whether it can be trained, without torch and the network."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ed_train.models.header import Header, check_torch_zip, read_safetensors_header
from ed_train.models.part_configs import TRAINABLE, config_problems
from ed_train.models.weight_files import WEIGHTS, weight_files
from ed_train.paths import straight

PARTS = ("unet", "text_encoder", "vae", "tokenizer", "scheduler")
SUFFIXES = (".safetensors", ".ckpt")
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
_CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
_VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

_OTHER_MODELS = (
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("model.diffusion_model.label_emb.", "Stable Diffusion XL or an upscaler"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.", "Flux"),
    ("double_blocks.", "Flux"),
    ("lora_", "a LoRA, not a whole model"),
    ("control_model.", "a ControlNet"),
    ("down_blocks.", "a single component (put it into a diffusers folder)"),
)
"""Beginnings of tensor names in single files of models that are not Stable Diffusion 1 or 2."""

_SINGLE_FILE_PARTS = (
    ("unet", ("model.diffusion_model.",)),
    ("text_encoder", ("cond_stage_model.transformer.", "cond_stage_model.model.")),
    ("vae", ("first_stage_model.", "vae.")),
)


@dataclass(frozen=True)
class ModelReference:
    """A model that a run starts from.

    Attributes:
        kind: a diffusers folder, a single file in the original Stable Diffusion layout, or a repository on the hub.
        location: the absolute path, or the hub id.
        model_config: for a single file: absolute path or hub id of a diffusers folder with the configuration of its
            components; None for the one that diffusers knows for this kind of file.
    """

    kind: Literal["folder", "file", "hub"]
    location: str
    model_config: str | None = None

    @property
    def path(self) -> Path:
        """The location of a folder or file."""
        return Path(self.location)


def check_model(
    ref: str, *, base: Path, model_config: str | None, weights: bool = True
) -> tuple[ModelReference | None, list[str]]:
    """Resolve the model that a user named and check what can be checked from names, headers and JSON files.

    Args:
        ref: a diffusers folder, a ``.safetensors`` or ``.ckpt`` file, or a hub id ``owner/name``. A relative path is
            looked up in `base`, then in the current directory.
        base: the folder of the file that names the model.
        model_config: what the user gave for a single file's configuration, resolved in the same way.
        weights: whether a folder must have the weights, or only the configuration.

    Returns:
        The reference, or None if there are problems, and one message per problem.
    """
    path = _find(ref, base)
    if path is None:
        if not _is_hub_id(ref, base):
            return None, [_missing(ref, base)]
        reference, messages = ModelReference("hub", ref), []
    elif path.is_dir():
        reference, messages = ModelReference("folder", str(path)), folder_problems(path, weights=weights)
    else:
        config, messages = _check_model_config(model_config, base)
        reference, messages = ModelReference("file", str(path), config), _file_problems(path) + messages
    if model_config is not None and reference.kind != "file":
        messages = [*messages, f"model_config {_quote(model_config)} is only for single files; remove it"]
    return (None if messages else reference), messages


def folder_problems(folder: Path, *, weights: bool = True) -> list[str]:
    """Say what is wrong with a diffusers folder of Stable Diffusion 1 or 2; an empty list if nothing is.

    Args:
        folder: the folder with model_index.json.
        weights: whether the components' weights are wanted, or only their configuration.
    """
    try:
        if not (folder / "model_index.json").is_file():
            return [_not_diffusers(folder)]
        index = _read_config(folder / "model_index.json")
        pipeline = index.get("_class_name")
        if pipeline not in _PIPELINES or "text_encoder_2" in index:
            return [f"{_quote(folder)} holds a {pipeline}; {TRAINABLE} (a {_PIPELINES[0]})"]
        missing = [part for part in PARTS if not _config_file(folder, part).is_file()]
        if missing:
            return [f"{_quote(folder)} lacks {', '.join(missing)}; a diffusers folder has {', '.join(PARTS)}"]
        configs = {part: _read_config(_config_file(folder, part)) for part in PARTS}
        vocabulary = any(all((folder / "tokenizer" / name).is_file() for name in names) for names in _VOCABULARIES)
    except ValueError as error:
        return [str(error)]
    except OSError as error:  # a folder that others may not look into
        return [f"{_quote(error.filename)} cannot be read: {error.strerror}"]
    problems = _foreign_code(folder, index, configs)
    problems += [f"{_quote(folder)}: {problem}" for problem in config_problems(configs)]
    if not vocabulary:
        problems.append(f"{_quote(folder / 'tokenizer')} has no vocabulary; expected vocab.json and merges.txt")
    return problems + (_weight_problems(folder) if weights else [])


def _find(ref: str, base: Path) -> Path | None:
    for folder in (base, Path.cwd()):
        try:
            path = (folder / Path(ref).expanduser()).absolute()
            if ref and path.exists():
                return straight(path)
        except (OSError, ValueError, RuntimeError):  # a NUL, a name that is too long, an unknown ~user
            return None
    return None


def _is_hub_id(ref: str, base: Path) -> bool:
    """``owner/name``, unless it looks like a path: an extension of ours, or a first part that is a folder here."""
    if not _HUB_ID.fullmatch(ref) or Path(ref).suffix in SUFFIXES:
        return False
    return _find(ref.split("/")[0], base) is None


def _missing(ref: str, base: Path) -> str:
    if "://" in ref:
        return f"{_quote(ref)} is an address; expected a diffusers folder, a file, or a hub id such as owner/name"
    try:
        if not ref:
            raise ValueError(ref)
        paths = [(folder / Path(ref).expanduser()).absolute() for folder in (base, Path.cwd())]
        folders = list(dict.fromkeys(path.parent for path in paths))
        names = sorted(p.name for folder in folders if folder.is_dir() for p in folder.iterdir())
    except PermissionError as error:
        return f"{_quote(ref)}: {error.filename} cannot be read: {error.strerror}"
    except (OSError, ValueError, RuntimeError):
        return f"{_quote(ref)} is not a path; expected a diffusers folder, a .safetensors or .ckpt file, or a hub id"
    close = get_close_matches(Path(ref).name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{_quote(ref)}: no such file or folder in {' or '.join(map(str, folders))}{hint}"


def _check_model_config(model_config: str | None, base: Path) -> tuple[str | None, list[str]]:
    if model_config is None:
        return None, []
    path = _find(model_config, base)
    if path is None and _is_hub_id(model_config, base):
        return model_config, []
    if path is None:
        return None, [f"model_config {_missing(model_config, base)}"]
    problems = folder_problems(path, weights=False) if path.is_dir() else [f"{_quote(path)} is not a folder"]
    return str(path), [f"model_config {problem}" for problem in problems]


def _not_diffusers(folder: Path) -> str:
    if (folder.parent / "model_index.json").is_file():
        return f"{_quote(folder)} is a part of a model; did you mean {_quote(folder.parent)}?"
    files = sorted(p.name for suffix in SUFFIXES for p in folder.glob(f"*{suffix}"))
    inner = sorted(p.parent.name for p in folder.glob("*/model_index.json"))
    names = [f"{folder.name}/{name}" for name in (files + inner)[:5]]
    hint = f"; did you mean {' or '.join(names)}?" if names else "; is it a diffusers folder?"
    return f"{_quote(folder)} has no model_index.json{hint}"


def _config_file(folder: Path, part: str) -> Path:
    return folder / part / _CONFIGS.get(part, "config.json")


def _read_config(path: Path) -> dict[str, Any]:
    """A component's JSON file. Libraries write these, so that the standard library's tolerance is right for them."""
    try:
        config = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{_quote(path)} cannot be read: {_why(error)}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{_quote(path)} is not a JSON object")
    return config


def _foreign_code(folder: Path, index: dict[str, Any], configs: dict[str, dict[str, Any]]) -> list[str]:
    """Components whose class is not diffusers' or transformers' own: they come with code that is never run here."""
    problems = []
    for part in PARTS:
        entry = index.get(part)
        library = entry[0] if isinstance(entry, list) and entry else entry
        if library not in ("diffusers", "transformers") or "auto_map" in configs[part]:
            wanted = configs[part].get("auto_map") or entry
            problems.append(f"{_quote(folder)}: {part} wants code from outside ({wanted}), which ed-train never runs")
    return problems


def _weight_problems(folder: Path) -> list[str]:
    problems = []
    for part in ("unet", "text_encoder", "vae"):
        path = folder / part
        try:
            files = weight_files(path)
            if not files:
                problems.append(f"{_quote(path)} has no weights; expected {WEIGHTS[part == 'text_encoder']}")
            for path in files:
                if not path.is_file():
                    raise ValueError("the index names this file, and it is not there; fetch it again")
                if path.suffix == ".bin":
                    check_torch_zip(path)
                else:
                    read_safetensors_header(path)
        except (OSError, ValueError) as error:
            problems.append(f"{_quote(path)}: {_why(error)}")
    return problems


def _file_problems(path: Path) -> list[str]:
    try:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError("expected a .safetensors or .ckpt file, or a diffusers folder")
        if not path.is_file():  # reading a pipe would wait for whoever writes into it
            raise ValueError("not a regular file")
        if path.suffix.lower() == ".ckpt":
            check_torch_zip(path)
        elif problem := single_file_problem(read_safetensors_header(path)):
            raise ValueError(problem)
    except (OSError, ValueError) as error:
        return [f"{_quote(path)}: {_why(error)}"]
    return []


def single_file_problem(header: Header) -> str:
    """Why the tensors of a single file are not those of Stable Diffusion 1 or 2; empty if they are."""
    for prefix, name in _OTHER_MODELS:
        if any(key.startswith(prefix) for key in header):
            return f"this is {name}; {TRAINABLE}"
    missing = [part for part, prefixes in _SINGLE_FILE_PARTS if not any(key.startswith(prefixes) for key in header)]
    if missing:
        return f"the file has no {', '.join(missing)} in the original Stable Diffusion layout; {TRAINABLE}"
    first = header.get("model.diffusion_model.input_blocks.0.0.weight", {}).get("shape", [])
    if len(first) == 4 and first[1] != 4:
        return f"the UNet has {first[1]} input channels, not 4 (inpainting?); {TRAINABLE}"
    return ""


def _why(error: Exception) -> str:
    """In one line, without the file's name, which stands before it."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _quote(value: object) -> str:
    text = str(value).replace("\x00", "\\0")
    return f'"{text}"' if len(text) <= 200 else f'"{text[:197]}..."'
