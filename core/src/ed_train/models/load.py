"""Load a Stable Diffusion model part by part, in float32 on the CPU.

Nothing is ever unpickled: ``.bin`` and ``.ckpt`` files with anything but tensors in them are refused beforehand, and
diffusers and transformers read them with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ed_train.errors import ConfigError, Problem
from ed_train.models.atomic import file_sha256
from ed_train.models.quiet import quiet_libraries
from ed_train.models.reference import ModelReference, folder_problems, weight_file
from ed_train.models.save import DIFFUSERS_WEIGHTS, component_config
from ed_train.models.tensors import listed, non_finite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_HUB_CONFIGS = ["*.json", "tokenizer/*"]
_HUB_WEIGHTS = (
    ["*/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"],
    ["*/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"],
    ["*/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"],
)
"""What to fetch from the hub, in order of preference: the same weights lie there in several forms."""


class SdModel:
    """The parts of one Stable Diffusion model, each loaded when it is asked for and handed over once.

    A part that is asked for again is loaded again. The parts of a single file are read together, and those not yet
    asked for are kept until `close`.

    Attributes:
        folder: the diffusers folder (of a hub repository: its local copy), or None for a single file.
        spare: a checkpoint of the model, with the same VAE, tokenizer and scheduler. A run that saves many may outlive
            the folder that it came from: that of an older checkpoint, or one that somebody needed the room of.
    """

    def __init__(self, reference: ModelReference) -> None:
        """Find the model, fetching it from the hub if need be.

        Raises:
            ConfigError: the hub cannot be reached, or what it has is not a model that can be trained.
        """
        self.reference = reference
        self.folder: Path | None = None
        self.spare: Path | None = None
        if reference.kind == "folder":
            self.folder = reference.path
        elif reference.kind == "hub":
            self.folder = fetch(reference.location)
        self._from_file: dict[str, Any] = {}
        self._fingerprints: dict[str, str] = {}

    def load_unet(self) -> UNet2DConditionModel:
        """The UNet. Raises ConfigError if it cannot be read, lacks weights, or has NaN or infinite ones."""
        return self._load("unet")

    def load_text_encoder(self) -> CLIPTextModel:
        """The text encoder. Raises ConfigError as `load_unet` does."""
        return self._load("text_encoder")

    def load_vae(self) -> AutoencoderKL:
        """The VAE, which is never trained: frozen. Raises ConfigError as `load_unet` does."""
        return self._load("vae").requires_grad_(False)

    def load_tokenizer(self) -> CLIPTokenizer:
        """The tokenizer. Raises ConfigError if it cannot be read."""
        return self._load("tokenizer")

    def scheduler_config(self, *, zero_terminal_snr: bool = False) -> dict[str, Any]:
        """The configuration of the model's scheduler, with its ``_class_name``, ``prediction_type`` and betas.

        Args:
            zero_terminal_snr: rescale the betas so that the last timestep is pure noise (Lin et al. 2023,
                https://arxiv.org/abs/2305.08891). DDIM is the sampler that then goes with the model; it starts at
                the last timestep if the model predicts v. From pure noise a prediction of the noise says nothing.
        """
        config: dict[str, Any] = dict(self._load("scheduler"))
        config.setdefault("prediction_type", "epsilon")
        if zero_terminal_snr:
            config |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "clip_sample": False}
            config["timestep_spacing"] = "trailing" if config["prediction_type"] == "v_prediction" else "leading"
        return config

    def load_noise_scheduler(self, *, zero_terminal_snr: bool = False) -> DDPMScheduler:
        """The noise schedule to train with: always a DDPMScheduler, whatever sampler the model comes with."""
        from diffusers import DDPMScheduler

        with quiet_libraries():
            return DDPMScheduler.from_config(self.scheduler_config(zero_terminal_snr=zero_terminal_snr))

    def fingerprint(self, part: str) -> str:
        """A sha256 over the configuration and weights of `part`, for the keys of caches.

        Of a folder the files are read, not loaded. A single file is loaded, so ask before the part is handed over.
        """
        if part not in self._fingerprints:
            if self.folder is not None:
                self._fingerprints[part] = _folder_fingerprint(self.folder / part)
            else:
                self._from_file[part] = value = self._load(part)
                self._fingerprints[part] = _part_fingerprint(value)
        return self._fingerprints[part]

    def scaling_factor(self) -> float:
        """What VAE latents are multiplied with before noise is added, from the VAE's configuration, not its weights."""
        if self.folder is not None:
            config = json.loads((self.folder / "vae" / "config.json").read_text("utf-8"))
        else:
            self._from_file["vae"] = vae = self._load("vae")
            config = vae.config
        return float(config.get("scaling_factor", 0.18215))

    def copyable(self, part: Literal["vae", "tokenizer"]) -> Path | None:
        """The folder of `part` if a checkpoint can take its files over as they are, else None."""
        folder = self._home(part)
        if folder is None:
            return None
        needed = {"vae": ("config.json", DIFFUSERS_WEIGHTS), "tokenizer": ("vocab.json", "merges.txt")}[part]
        return folder if all((folder / name).is_file() for name in needed) else None

    def close(self) -> None:
        """Let go of the parts of a single file that nobody asked for."""
        self._from_file = {part: value for part, value in self._from_file.items() if part == "scheduler"}

    def _home(self, part: str) -> Path | None:
        """The folder of a part, from the spare if the model itself is gone or is a single file."""
        folders = [folder / part for folder in (self.folder, self.spare) if folder]
        return next((folder for folder in folders if folder.is_dir()), folders[0] if folders else None)

    def _load(self, part: str) -> Any:
        with quiet_libraries():
            if folder := self._home(part):
                value = _load_from_folder(folder, part)
            else:
                if part not in self._from_file:
                    self._from_file = _load_single_file(self.reference)
                value = self._from_file[part] if part == "scheduler" else self._from_file.pop(part)
        return _checked(value, part, self.reference.location) if isinstance(value, torch.nn.Module) else value


def _load_from_folder(path: Path, part: str) -> Any:
    """One part of a diffusers folder: a module, a tokenizer, or the scheduler's configuration."""
    import diffusers
    import transformers

    try:
        if part == "scheduler":
            return json.loads((path / "scheduler_config.json").read_text("utf-8"))
        if part == "tokenizer":
            return transformers.CLIPTokenizer.from_pretrained(str(path), local_files_only=True)
        classes = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
        return _from_pretrained(classes.get(part) or transformers.CLIPTextModel, path)
    except ConfigError:
        raise
    except Exception as error:
        raise load_error(f"{path}: {part} cannot be loaded: {one_line(error)}") from error


def _from_pretrained(cls: Any, path: Path) -> torch.nn.Module:
    weights = weight_file(path)
    if weights is None:
        raise load_error(f"{path} has no weights")
    if weights.suffix == ".bin":
        refuse_foreign_globals(weights)
    options: dict[str, Any] = {"use_safetensors": weights.suffix != ".bin", "local_files_only": True}
    if ".fp16." in weights.name:
        options["variant"] = "fp16"
    module, info = cls.from_pretrained(str(path), output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):  # the libraries would train random numbers in their place
        raise load_error(f"{weights} lacks {listed(missing)}")
    result: torch.nn.Module = module
    return result


def _load_single_file(reference: ModelReference) -> dict[str, Any]:
    """All parts of a file in the original layout, by diffusers, which finds out whether it is of version 1 or 2."""
    from diffusers import StableDiffusionPipeline

    path, config = reference.path, reference.model_config
    if path.suffix.lower() == ".ckpt":
        refuse_foreign_globals(path)
    if config is not None and not Path(config).is_dir():
        config = str(fetch(config, weights=False))
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        pipeline = StableDiffusionPipeline.from_single_file(str(path), config=config, **optional)
    except NotImplementedError as error:  # torch's for a tensor that was never filled
        raise load_error(f"{path} lacks weights that its configuration asks for; is model_config right?") from error
    except Exception as error:
        hint = "" if config else "; set model_config to a diffusers folder of the same kind of model, or its hub id"
        raise load_error(f"{path} cannot be loaded: {one_line(error)}{hint}") from error
    parts = {part: getattr(pipeline, part) for part in ("unet", "text_encoder", "vae", "tokenizer")}
    return {**parts, "scheduler": json.loads(pipeline.scheduler.to_json_string())}


def refuse_foreign_globals(path: Path) -> None:
    """Read the names in a pickle without running it.

    Raises:
        ConfigError: the file wants anything but tensors and plain containers; lists what.
    """
    try:
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception as error:
        raise load_error(f"{path} cannot be read as a torch checkpoint: {one_line(error)}") from error
    if foreign:
        message = f"{path} wants to run {listed(foreign, 10)}; nothing in it was run; use a .safetensors file"
        raise load_error(message)


def _checked(module: torch.nn.Module, part: str, location: str) -> torch.nn.Module:
    """The module in float32, in memory of its own, if all its weights are there and finite."""
    state = module.state_dict()
    if missing := [name for name, tensor in state.items() if tensor.is_meta]:
        raise load_error(f"{location}: {part} lacks {listed(missing)}")
    if bad := non_finite(state):
        raise load_error(f"{location}: {part} has NaN or infinite weights: {listed(bad)}; fetch the model again")
    for parameter in module.parameters():
        # A copy even where it is float32: the libraries map the file, and who changes the file changes the weights.
        parameter.data = parameter.data.to(torch.float32, copy=True)
    return module


def fetch(hub_id: str, *, weights: bool = True) -> Path:
    """The local copy of a hub repository; its configuration is checked before any weights are fetched.

    Raises:
        ConfigError: it cannot be reached, or is not a model that can be trained.
    """
    folder = _snapshot(hub_id, _HUB_CONFIGS)
    problems = folder_problems(folder, weights=False)
    if weights and not problems:
        for patterns in _HUB_WEIGHTS:
            _snapshot(hub_id, [*_HUB_CONFIGS, *patterns])
            problems = folder_problems(folder)
            if not problems:
                break
    if problems:
        raise ConfigError([Problem("", "resume_ckpt", f"{hub_id}: {problem}") for problem in problems])
    return folder


def _snapshot(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:
        advice = "give a local diffusers folder or file, or go online once"
        raise load_error(f"{hub_id} cannot be fetched from the hub: {one_line(error)}; {advice}") from error


def _folder_fingerprint(path: Path) -> str:
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".json", ".txt"))
    weights = weight_file(path)
    hashes = [f"{p.name} {file_sha256(p)}" for p in [*files, *([weights] if weights else [])]]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _part_fingerprint(part: Any) -> str:
    digest = hashlib.sha256()
    if isinstance(part, torch.nn.Module):
        digest.update(json.dumps(component_config(part), sort_keys=True).encode())
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
    else:
        digest.update(json.dumps(sorted(part.get_vocab().items())).encode())
    return digest.hexdigest()


def load_error(message: str) -> ConfigError:
    """The error of a model that cannot be loaded."""
    return ConfigError([Problem("", "resume_ckpt", message)])


def one_line(error: BaseException) -> str:
    """What a library says, in one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
