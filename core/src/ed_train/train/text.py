"""From token ids to what the UNet's cross attention sees, with what depends on the caption alone taken from a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ed_train.config.run import TEXT_ENCODER, RunConfig
from ed_train.data.cache_folder import CacheFolder
from ed_train.data.embeddings import EmbeddingCache
from ed_train.models.fingerprint import front_digest
from ed_train.models.load import SdModel
from ed_train.models.save import ModelWeights, weights_of
from ed_train.models.text_parts import LastPart, body, front_part, frozen_layers, reached_layers
from ed_train.train.attention import FEW_KEYS, attends_in_float32

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMAT = 1
"""Part of every key: raise it when the same weights would give other embeddings."""

_ROWS = 8
"""Captions that a CPU encodes at once."""


@dataclass
class TextConditioning:
    """A run's text encoder.

    The front, embeddings and frozen layers, gives the same for a caption in every step; the rest runs in each.

    Attributes:
        run: the run's configuration.
        model: where the text encoder comes from.
        accelerator: device and precision.
        module: the whole text encoder on the device; None where nothing of it is needed in memory.
        layers: how many layers the front has.
        last: the rest, wrapped for autocast and for several processes; None if the front is all.
        cache: what the front makes of captions; None if it runs in each step, too.
    """

    run: RunConfig
    model: SdModel
    accelerator: Accelerator
    module: nn.Module | None
    layers: int = 0
    last: nn.Module | None = None
    cache: EmbeddingCache | None = None

    def embeddings(self, token_ids: Tensor, front: Tensor | None = None) -> Tensor:
        """Embed captions, as the UNet wants them.

        Args:
            token_ids: int64 [batch, tokens], anywhere.
            front: what the cache has for them, if it has been looked up, [batch, tokens, width].

        Returns:
            [batch, tokens, width] on the device; with a graph where the text encoder trains and gradients are on.
        """
        device, hidden = self.accelerator.device, front
        if hidden is None and self.layers:
            found = self.cache.get(list(token_ids.cpu())) if self.cache else None
            hidden = torch.stack(found) if found else self.front(token_ids)
        if hidden is not None:
            hidden = hidden.to(device, non_blocking=True)
        if self.last is None:
            assert hidden is not None, "a front without layers"
            return hidden.float()
        # without gradients there is nothing to exchange with other processes, which may have other batches to embed
        last = self.last if torch.is_grad_enabled() else self.accelerator.unwrap_model(self.last)
        embeddings: Tensor = last(token_ids.to(device, non_blocking=True), hidden)
        return embeddings

    def front(self, token_ids: Tensor) -> Tensor:
        """What the front makes of token ids [batch, tokens], computed."""
        with self.whole() as text_encoder:
            return self._front_of(text_encoder, token_ids)

    def _front_of(self, text_encoder: nn.Module, token_ids: Tensor) -> Tensor:
        part = front_part(text_encoder, self.layers, normed=self.last is None)
        with torch.no_grad(), self.accelerator.autocast():
            hidden: Tensor = part(token_ids.to(self.accelerator.device))[0]
        return hidden

    @contextmanager
    def whole(self) -> Generator[nn.Module]:
        """The whole text encoder on the device, loaded if it is not in memory, and then only while the block runs."""
        yield self.module or self.model.load_text_encoder().requires_grad_(False).eval().to(self.accelerator.device)

    def weights(self, *, copy: bool) -> ModelWeights | Path:
        """What a checkpoint has of it: its weights, or the folder that they can be taken over from.

        Raises:
            ConfigError: it is not in memory, and where it came from is gone.
        """
        if self.module is not None:
            return weights_of(self.module, copy=copy)
        return self.model.copyable("text_encoder") or weights_of(self.model.load_text_encoder())

    def prepare(self, token_ids: Sequence[Tensor]) -> None:
        """Make sure that the cache, if there is one, has these captions. All processes must call it together.

        Raises:
            ConfigError: the cache folder cannot be written to, or the text encoder cannot be loaded.
        """
        if self.cache is None:
            return
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if self.cache.missing(token_ids):
            with self.whole() as text_encoder:
                self.cache.build(token_ids, partial(self._front_of, text_encoder), rank=rank, world=world)
        self.accelerator.wait_for_everyone()
        self.cache.missing(token_ids)  # nothing: it takes in what the other processes have added


def needs_text_encoder(run: RunConfig, shuffles: bool) -> bool:
    """Whether the text encoder is in memory while training goes on: it trains, or no cache can take its place.

    Args:
        run: the run's configuration.
        shuffles: whether captions are shuffled, which no cache can have all of.
    """
    return TEXT_ENCODER in run.components or not _may_cache(run, shuffles)


def prepare_text(
    run: RunConfig,
    model: SdModel,
    accelerator: Accelerator,
    precision: str,
    text_encoder: nn.Module | None,
    token_ids: Sequence[Tensor],
    shuffles: bool,
) -> TextConditioning:
    """Divide the text encoder into what runs once per caption and what runs in each step, and fill the cache.

    Args:
        run: the run's configuration.
        model: where the text encoder comes from.
        accelerator: device, precision and processes.
        precision: of autocast: ``bf16``, ``fp16`` or ``no``.
        text_encoder: frozen as the run freezes it, on the device; None where `needs_text_encoder` says no.
        token_ids: of every caption that is known before training.
        shuffles: as for `needs_text_encoder`.

    Raises:
        ConfigError: the cache folder or the model cannot be used, or clip_skip leaves no layer.
    """
    clip_skip, trains = run.train.clip_skip, TEXT_ENCODER in run.components
    if text_encoder is None:
        layers = reached_layers(int(model.tensor_digests("text_encoder")[1].get("num_hidden_layers", 12)), clip_skip)
    else:
        layers = front_layers(run, text_encoder)
    text = TextConditioning(run, model, accelerator, text_encoder, layers)
    if text_encoder is not None and trains:
        text.last = accelerator.prepare_model(LastPart(text_encoder, layers, clip_skip))
    if layers and _may_cache(run, shuffles):
        rows = _ROWS if accelerator.device.type == "cpu" else run.train.batch_size
        folder, key = Path(run.train.cache_dir or ""), _key(text, precision, rows)
        with CacheFolder(folder).being_opened():
            text.cache = EmbeddingCache(folder / "text", key=key, rows=rows, progress=accelerator.is_main_process)
            text.prepare(token_ids)
    return text


def front_layers(run: RunConfig, text_encoder: nn.Module) -> int:
    """How many layers the front has: all that the loss reaches, if the text encoder does not train."""
    if TEXT_ENCODER in run.components:
        return frozen_layers(text_encoder, run.train.clip_skip)
    return reached_layers(len(body(text_encoder).encoder.layers), run.train.clip_skip)


def cache_lines(run: RunConfig, layers: int, shuffles: bool) -> list[str]:
    """What a run does with the front of its text encoder, for the user; none if there is no front."""
    if not layers:
        return []
    trains = TEXT_ENCODER in run.components
    what = f"text encoder: embeddings and {_counted(layers)}" if trains else "text embeddings"
    if not run.train.cache_text_embeddings:
        return [f"{what}: computed in every step  (cache_text_embeddings: {run.sources['cache_text_embeddings']})"]
    if shuffles:
        return [f"{what}: computed in every step, since shuffle_tags makes new captions all the time"]
    return [f"{what}: cached for each caption" + ("" if trains else "; the text encoder is not kept in memory")]


def _counted(layers: int) -> str:
    return "layer 0" if layers == 1 else f"layers 0-{layers - 1}"


def _may_cache(run: RunConfig, shuffles: bool) -> bool:
    return run.train.cache_text_embeddings and not shuffles


def _key(text: TextConditioning, precision: str, rows: int) -> str:
    """Everything beside the token ids that decides about an entry, to the last bit.

    On a CPU a caption's embeddings are the same whatever they are computed together with, and with any number of
    threads. On a GPU the number of captions at once decides about rounding, and it is that of a training batch.
    """
    digests, config = text.model.tensor_digests("text_encoder")
    device = text.accelerator.device
    if device.type == "cpu":
        where = [device.type, torch.backends.cpu.get_cpu_capability()]
        where += [f"float32 attention below {FEW_KEYS} keys"] if attends_in_float32(device, precision) else []
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        where = [name, rows]
    front = front_digest(digests, config, text.layers, normed=text.last is None)
    return hashlib.sha256(json.dumps([FORMAT, torch.__version__, *where, precision, front]).encode()).hexdigest()
