"""Read the prompts of sample pictures: one per line of a .txt file, or a .json file with settings for each picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ed_train.config.describe import show_with_type
from ed_train.config.jsontext import Document, read_json_object
from ed_train.config.validate import validated
from ed_train.errors import ConfigError, Problem
from ed_train.specs import Bounds, Help, NonNegative

Seed = Annotated[int, Bounds(ge=-1, le=2**32 - 1)]
Side = Annotated[int, Bounds(ge=64, le=4096)]
Sampler = Literal["ddim", "ddpm", "euler", "euler_a", "dpm++", "dpm++_2m", "dpm++_2m_sde"]
"""`ed_train.models.samplers` has what they are."""

_OPTION = re.compile(r"\s--[nwhdls]\s")
"""As sd-scripts has them behind a prompt."""
_INSTEAD = "a .json file has negative_prompt, size and seed for each prompt, cfgs and num_inference_steps for all"


@dataclass(frozen=True, kw_only=True)
class SamplePrompt:
    """One picture to draw, at each of the guidance scales."""

    prompt: Annotated[str, Help("what to draw")] = ""
    negative_prompt: Annotated[str, Help("what to steer away from")] = ""
    seed: Annotated[Seed | None, Help("seed of its noise; -1: a new one each time; null: the file's seed")] = None
    size: Annotated[tuple[Side, Side] | None, Help("width and height in pixels, multiples of 8; null: square")] = None
    aspect_ratio: Annotated[
        Annotated[float, Bounds(ge=0.25, le=4)] | None,
        Help("width / height, in place of size: the nearest size that pictures train at"),
    ] = None
    random_caption: Annotated[bool, Help("draw a caption of the training data in place of the prompt")] = False

    def __post_init__(self) -> None:
        if self.size is not None and any(side % 8 for side in self.size):
            raise ValueError(f"size: got {list(self.size)}; expected multiples of 8 (better: of 64)")
        if self.size is not None and self.aspect_ratio is not None:
            raise ValueError("size and aspect_ratio both say what shape it has; keep one of them")


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What a file of sample prompts says."""

    samples: Annotated[tuple[SamplePrompt, ...], Help("the pictures")] = ()
    batch_size: Annotated[Annotated[int, Bounds(ge=1, le=256)], Help("pictures drawn at once")] = 4
    seed: Annotated[Seed, Help("seed of the noise; -1: a new one each time")] = 555
    cfgs: Annotated[tuple[NonNegative, ...], Help("guidance scales; each picture is drawn with each")] = (7.0,)
    scheduler: Annotated[Sampler, Help("sampler")] = "ddim"
    resolution: Annotated[
        Side | None, Help("pixels of a square picture's side, a multiple of 64; null: train.json's")
    ] = None
    num_inference_steps: Annotated[Annotated[int, Bounds(ge=1, le=1000)], Help("denoising steps")] = 30
    show_progress_bars: Annotated[bool, Help("show a bar for the denoising steps, in a terminal")] = False
    generate_samples_every_n_steps: Annotated[
        Annotated[int, Bounds(ge=0)] | None, Help("goes before train.json's sample_steps")
    ] = None
    generate_pretrain_samples: Annotated[bool, Help("draw before the first step, too")] = True

    def __post_init__(self) -> None:
        if self.resolution is not None and self.resolution % 64:
            raise ValueError(f"resolution: got {self.resolution}; expected a multiple of 64")
        if not self.cfgs:
            raise ValueError("cfgs: got an empty list; expected at least one guidance scale, e.g. 7")


def read_sample_prompts(path: Path) -> tuple[SampleSettings | None, list[Problem]]:
    """Read a file of sample prompts.

    Args:
        path: a ``.json`` file with the fields of `SampleSettings`, ``samples`` being a list of the fields of
            `SamplePrompt`; or a text file of any other name with one prompt per line, where empty lines and lines
            that begin with ``#`` do not count.

    Returns:
        The settings, or None if there are problems, and the problems.
    """
    try:
        settings, problems = (
            parse_sample_settings(read_json_object(path)) if path.suffix == ".json" else _from_text(path)
        )
    except ConfigError as error:
        return None, list(error.problems)
    if not problems and not settings.samples:
        problems = [Problem(path.name, "", "there are no prompts in it; add some, or remove sample_prompts")]
    return (None if problems else settings), problems


def _from_text(path: Path) -> tuple[SampleSettings, list[Problem]]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return SampleSettings(), [Problem(path.name, "", "the file is not UTF-8 text; save it as UTF-8")]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return SampleSettings(), [Problem(str(path)[:200], "", f"cannot be read: {reason}")]
    prompts = {
        number: line.strip()
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    }
    problems = [
        Problem(f"{path.name}:{number}", "", f"{found.group().strip()} is no option here; {_INSTEAD}")
        for number, prompt in prompts.items()
        if (found := _OPTION.search(prompt))
    ]
    return SampleSettings(samples=tuple(SamplePrompt(prompt=prompt) for prompt in prompts.values())), problems


def parse_sample_settings(document: Document) -> tuple[SampleSettings, list[Problem]]:
    """Sample settings from JSON, and the problems that they have."""
    values = {key: value for key, value in document.value.items() if value is not None and key != "doc"}
    listed = values.pop("samples", [])
    settings, problems, _ = validated(SampleSettings, values, where=document.where)
    if not isinstance(listed, list):
        message = f"got {show_with_type(listed)}; expected a list of objects"
        return SampleSettings(), [*problems, Problem(document.where("samples"), "samples", message)]
    samples: list[SamplePrompt] = []
    for index, entry in enumerate(listed):
        sample, found = _sample(entry, index, document)
        samples += [sample] if sample else []
        problems += found
    general = SampleSettings() if settings is None else settings
    return SampleSettings(**{**vars(general), "samples": tuple(samples)}), problems


def _sample(entry: Any, index: int, document: Document) -> tuple[SamplePrompt | None, list[Problem]]:
    where, key = document.where("samples", index), f"samples[{index}]"
    if not isinstance(entry, Mapping):
        return None, [Problem(where, key, f"got {show_with_type(entry)}; expected an object")]
    given = {name: value for name, value in entry.items() if value is not None}
    if not given.get("prompt") and not given.get("random_caption"):
        return None, [Problem(where, key, "has neither a prompt nor random_caption: true")]
    sample, problems, _ = validated(
        SamplePrompt, given, key_prefix=f"{key}.", where=lambda name: document.where("samples", index, name)
    )
    return sample, problems
