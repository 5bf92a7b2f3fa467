"""A text encoder in two parts: what depends on the caption alone, and what training changes.

Both are the encoder's own class with fewer children, over the same parameters, so that transformers' code runs in them
as it does in the whole, whatever its version.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

from ed_train.errors import ConfigError, Problem

M = TypeVar("M", bound=nn.Module)


def body(text_encoder: nn.Module) -> Any:
    """What has embeddings, encoder and final layer norm; transformers >= 5.6 has no ``text_model`` level."""
    return getattr(text_encoder, "text_model", text_encoder)


def reached_layers(layers: int, clip_skip: int) -> int:
    """How many of a text encoder's layers the loss reaches.

    Args:
        layers: how many it has.
        clip_skip: the layer whose output counts, from the end: 2 is the last but one; 1 and 0 are the last.

    Raises:
        ConfigError: none.
    """
    if clip_skip > layers:
        message = f"got {clip_skip}; expected at most {layers}, the text encoder's number of layers"
        raise ConfigError([Problem("", "clip_skip", message)])
    return layers - max(clip_skip - 1, 0)


def frozen_layers(text_encoder: nn.Module, clip_skip: int) -> int:
    """How many layers come before the first that trains; 0 where the embeddings train, or where dropout is random."""
    inner = body(text_encoder)
    if _trains(inner.embeddings) or inner.config.attention_dropout:
        return 0
    layers = inner.encoder.layers[: reached_layers(len(inner.encoder.layers), clip_skip)]
    return next((index for index, layer in enumerate(layers) if _trains(layer)), len(layers))


def front_part(text_encoder: nn.Module, layers: int, *, normed: bool) -> nn.Module:
    """The embeddings and the first layers.

    Args:
        text_encoder: the whole, whose parameters are shared.
        layers: how many.
        normed: whether the final layer norm follows.

    Returns:
        A module that takes token ids [batch, tokens]; its first output is hidden states [batch, tokens, width].
    """
    children = {} if normed else {"final_layer_norm": nn.Identity()}
    return _with_layers(text_encoder, 0, layers, **children)


class LastPart(nn.Module):
    """The layers of a text encoder behind the front part, up to clip_skip, and the final layer norm."""

    def __init__(self, text_encoder: nn.Module, front: int, clip_skip: int) -> None:
        """Share the parameters of a text encoder.

        Args:
            text_encoder: the whole.
            front: how many layers the front part has; with 0 there is none, and this begins with the embeddings.
            clip_skip: see `reached_layers`.
        """
        super().__init__()
        stop = reached_layers(len(body(text_encoder).encoder.layers), clip_skip)
        self._given = _Given() if front else None
        children = {"embeddings": self._given} if self._given else {}
        self.part = _with_layers(text_encoder, front, stop, **children)

    def forward(self, token_ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return embeddings [batch, tokens, width].

        Args:
            token_ids: [batch, tokens].
            hidden: what the front part makes of them, if there is one.
        """
        if self._given:
            self._given.hidden = hidden
        embeddings: Tensor = self.part(token_ids)[0]
        return embeddings


class _Given(nn.Module):
    """Stands in the place of the embeddings and returns what it was given."""

    hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        hidden, self.hidden = self.hidden, None
        return hidden


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _with_layers(text_encoder: nn.Module, start: int, stop: int, **children: nn.Module) -> nn.Module:
    inner = body(text_encoder)
    encoder = _with_children(inner.encoder, layers=inner.encoder.layers[start:stop])
    part = _with_children(inner, encoder=encoder, **children)
    return part if inner is text_encoder else _with_children(text_encoder, text_model=part)


def _with_children(module: M, **children: nn.Module) -> M:
    """A module like another, over the same parameters, with some of its children replaced."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}  # as torch itself copies modules for data-parallel training
    return twin
