"""Load a Stable Diffusion model part by part, in float32 on the CPU.

Nothing is ever unpickled: ``.bin`` and ``.ckpt`` files with anything but tensors in them are refused beforehand, and
diffusers and transformers read them with ``weights_only``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ed_train.errors import ConfigError
from ed_train.models.failure import as_load_error, load_error, one_line
from ed_train.models.file_info import stated_schedule
from ed_train.models.fingerprint import encoder_digest, folder_fingerprint, part_fingerprint, tensor_digests, weights_in
from ed_train.models.hub import fetch
from ed_train.models.memo import FileMemo
from ed_train.models.part_files import FILES, can_be_copied
from ed_train.models.quiet import quiet_libraries
from ed_train.models.reference import ModelReference
from ed_train.models.save import component_config
from ed_train.models.tensors import listed, non_finite
from ed_train.models.weight_files import weight_file, weight_files

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


class SdModel:
    """The parts of one Stable Diffusion model, each loaded when it is asked for and handed over once.

    A part that is asked for again is loaded again. The parts of a single file are read together, and those not yet
    asked for are kept until `close`.

    Attributes:
        folder: the diffusers folder (of a hub repository: its local copy), or None for a single file.
        spare: a checkpoint of the model, with the same VAE, tokenizer and scheduler. A run that saves many may outlive
            the folder that it came from: that of an older checkpoint, or one that somebody needed the room of.
    """

    def __init__(
        self, reference: ModelReference, memo: FileMemo | None = None, *, single_file: Path | None = None
    ) -> None:
        """Find the model, fetching it from the hub if need be.

        Args:
            reference: where it is.
            memo: remembers the hashes of its files from run to run; without, they are read anew.
            single_file: what the model really is, where `reference` is the configuration that goes with it.

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
        self._memo = memo or FileMemo()
        self._single_file = single_file or (reference.path if reference.kind == "file" else None)

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

        What a single file says itself goes over the configuration that it is loaded with.

        Args:
            zero_terminal_snr: rescale the betas so that the last timestep is pure noise (Lin et al. 2023,
                https://arxiv.org/abs/2305.08891). DDIM is the sampler that then goes with the model; it starts at
                the last timestep if the model predicts v. From pure noise a prediction of the noise says nothing.
        """
        config: dict[str, Any] = {"prediction_type": "epsilon", **self._load("scheduler"), **self._stated_schedule}
        if zero_terminal_snr or "rescale_betas_zero_snr" in self._stated_schedule:
            config |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "clip_sample": False}
            config["timestep_spacing"] = "trailing" if config["prediction_type"] == "v_prediction" else "leading"
        return config

    @cached_property
    def _stated_schedule(self) -> dict[str, Any]:
        if self._single_file is None:
            return {}
        with as_load_error(f"{self._single_file} cannot be read"):
            return stated_schedule(self._single_file)

    def load_noise_scheduler(self, *, zero_terminal_snr: bool = False) -> DDPMScheduler:
        """The noise schedule to train with: always a DDPMScheduler, whatever sampler the model comes with."""
        from diffusers import DDPMScheduler

        config = self.scheduler_config(zero_terminal_snr=zero_terminal_snr)
        with quiet_libraries(), as_load_error(f"{self.reference.location}: the noise schedule cannot be made"):
            return DDPMScheduler.from_config(config)

    def fingerprint(self, part: str) -> str:
        """A sha256 over the configuration and weights of `part`, of the VAE over what encodes, for the keys of caches.

        Of a folder the files are read, not loaded. A single file is loaded, so ask before the part is handed over. What
        was once read is remembered.
        """
        if part not in self._fingerprints:
            if part == "vae":
                self._fingerprints[part] = encoder_digest(*self.tensor_digests("vae"))
            elif self.folder is not None:
                self._fingerprints[part] = folder_fingerprint(self.folder / part, self._memo)
            else:
                self._fingerprints[part] = self._of_single_file(part, "sha256", part_fingerprint)
        return self._fingerprints[part]

    def tensor_digests(self, part: Literal["text_encoder", "vae"]) -> tuple[dict[str, str], dict[str, Any]]:
        """What `front_digest` and `encoder_digest` need: a hash of each of the part's tensors, and its configuration.

        Raises:
            ConfigError: the files cannot be read.
        """
        if self.folder is None:
            found = self._of_single_file(
                part, "tensors", lambda m: [tensor_digests(m.state_dict().items()), component_config(m)]
            )
            return found[0], found[1]
        folder = self.folder / part
        try:
            digests: dict[str, str] = {}
            for file in weight_files(folder):
                if file.suffix == ".bin":
                    refuse_foreign_globals(file)
                digests |= self._memo.value(file, "tensors", partial(tensor_digests, weights_in(file)))
            if not digests:
                raise load_error(f"{folder} has no weights")
            return digests, json.loads((folder / "config.json").read_text("utf-8"))
        except ConfigError:
            raise
        except Exception as error:
            raise load_error(f"{folder}: {part} cannot be read: {one_line(error)}") from error

    def _of_single_file(self, part: str, kind: str, compute: Callable[[Any], Any]) -> Any:
        """What `compute` makes of a part, which is kept until it is asked for."""

        def loaded() -> Any:
            self._from_file[part] = value = self._load(part)
            return compute(value)

        kind = f"{kind} of {part}, configured by {self.reference.model_config}"
        return self._memo.value(self.reference.path, kind, loaded)

    def scaling_factor(self) -> float:
        """What VAE latents are multiplied with before noise is added, from the VAE's configuration, not its weights."""
        if self.folder is not None:
            config = json.loads((self.folder / "vae" / "config.json").read_text("utf-8"))
        else:
            self._from_file["vae"] = vae = self._load("vae")
            config = vae.config
        return float(config.get("scaling_factor", 0.18215))

    def copyable(self, part: Literal["vae", "tokenizer", "text_encoder"]) -> Path | None:
        """The folder of `part` if a checkpoint can take its files over as they are, else None."""
        return next((folder for folder in self._homes(part) if can_be_copied(folder, part)), None)

    def close(self) -> None:
        """Let go of the parts of a single file that nobody asked for."""
        self._from_file = {part: value for part, value in self._from_file.items() if part == "scheduler"}

    def _home(self, part: str) -> Path | None:
        """The folder of a part, from the spare if the model itself is gone, damaged or a single file."""
        folders = self._homes(part)
        whole = (folder for folder in folders if part in FILES and can_be_copied(folder, part))
        there = (folder for folder in folders if folder.is_dir())
        return next(chain(whole, there, folders), None)

    def _homes(self, part: str) -> list[Path]:
        return [folder / part for folder in (self.folder, self.spare) if folder]

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
            if not any((path / name).is_file() for name in ("vocab.json", "tokenizer.json")):
                raise load_error(f"{path} has no vocabulary")  # transformers would make an empty one
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
