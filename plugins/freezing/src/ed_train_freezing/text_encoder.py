"""Freeze the first layers of a CLIP text model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ed_train import Bounds, Help

if TYPE_CHECKING:
    import torch

LayerCount = Annotated[int, Bounds(ge=0)]


@dataclass(frozen=True)
class TextEncoderFreezing:
    """Options of the section ``text_encoder_freezing``. Everything trains unless one of them says otherwise."""

    unfreeze_last_n_layers: Annotated[
        LayerCount | None, Help("train this many of the last layers; 0: none; null: all")
    ] = None
    unfreeze_final_n_layers: Annotated[LayerCount | None, Help("another name of unfreeze_last_n_layers")] = None
    freeze_front_n_layers: Annotated[
        int | None, Help("deprecated: freeze this many of the first layers; -n: all but the last n")
    ] = None
    freeze_embeddings: Annotated[
        bool | None, Help("freeze the token and position embeddings; null: as soon as a layer is frozen")
    ] = None
    freeze_final_layer_norm: Annotated[
        bool | None, Help("freeze the layer norm after the last layer; null: it trains")
    ] = None

    def __post_init__(self) -> None:
        last, final, front = self.unfreeze_last_n_layers, self.unfreeze_final_n_layers, self.freeze_front_n_layers
        if last is not None and final is not None and last != final:
            raise ValueError(
                f"unfreeze_last_n_layers={last} and unfreeze_final_n_layers={final} are two names of one setting "
                "and contradict each other; remove one"
            )
        trained = self.trained_layers
        if front is not None and front < 0 and trained is not None and trained != -front:
            raise ValueError(
                f"freeze_front_n_layers={front} trains the last {-front} layers, which contradicts "
                f"unfreeze_last_n_layers={trained}; remove freeze_front_n_layers"
            )
        if front is not None:
            instead = f"write unfreeze_last_n_layers={-front if front < 0 else f'the number of layers - {front}'}"
            if front == 0:
                instead = "remove it, since it freezes nothing"
            warnings.warn(f"freeze_front_n_layers={front} is deprecated; {instead}", DeprecationWarning, stacklevel=3)

    @property
    def trained_layers(self) -> int | None:
        """How many of the last layers train, under whichever of its two names it was given."""
        return self.unfreeze_final_n_layers if self.unfreeze_last_n_layers is None else self.unfreeze_last_n_layers


def freeze_text_encoder(module: torch.nn.Module, config: TextEncoderFreezing) -> tuple[str, ...]:
    """Freeze the first layers, and the embeddings and the final layer norm where `config` says so.

    Args:
        module: a transformers CLIPTextModel, with or without its ``text_model`` level, or a
            CLIPTextModelWithProjection, whose projection is left as it is.
        config: what to freeze.

    Returns:
        The names of the frozen parameters, in the order of the module.

    Raises:
        ValueError: the module is no CLIP text model, or two settings contradict each other for its number of layers.
    """
    text_model = _text_model(module)
    layers = list(text_model.encoder.layers)
    frozen_layers = _frozen_layers(config, len(layers))
    parts = layers[:frozen_layers]
    if config.freeze_embeddings or (config.freeze_embeddings is None and frozen_layers > 0):
        parts.append(text_model.embeddings)
    if config.freeze_final_layer_norm:
        parts.append(text_model.final_layer_norm)
    in_parts = {id(parameter) for part in parts for parameter in part.parameters()}
    frozen = {name: p for name, p in module.named_parameters() if id(p) in in_parts}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return tuple(frozen)


def _text_model(module: torch.nn.Module) -> Any:
    """The level that holds the layers: ``module.text_model``, or since transformers 5.6 the module itself."""
    text_model = getattr(module, "text_model", module)
    if not (
        hasattr(text_model, "embeddings")
        and hasattr(getattr(text_model, "encoder", None), "layers")
        and hasattr(text_model, "final_layer_norm")
    ):
        raise ValueError(f"text_encoder_freezing is for CLIP text models; it cannot freeze a {type(module).__name__}")
    return text_model


def _frozen_layers(config: TextEncoderFreezing, layers: int) -> int:
    """How many of the first of so many layers are frozen; more layers than there are means all of them."""
    front, trained = config.freeze_front_n_layers, config.trained_layers
    by_trained = 0 if trained is None else max(layers - trained, 0)
    if front is None:
        return by_trained
    by_front = min(front, layers) if front >= 0 else max(layers + front, 0)
    if trained is not None and by_front != by_trained:
        raise ValueError(
            f"freeze_front_n_layers={front} freezes {by_front} of the {layers} layers, unfreeze_last_n_layers="
            f"{trained} freezes {by_trained}: they contradict each other; remove freeze_front_n_layers"
        )
    return by_front
