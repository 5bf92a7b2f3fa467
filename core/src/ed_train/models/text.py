"""Text embeddings from CLIP's text encoder, in the layouts of transformers before and since 5.6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ed_train.models.text_parts import body, reached_layers

if TYPE_CHECKING:
    from transformers import CLIPTextModel


def text_embeddings(text_encoder: CLIPTextModel, token_ids: torch.Tensor, clip_skip: int = 0) -> torch.Tensor:
    """Embed token ids, as the UNet's cross attention wants them.

    Args:
        text_encoder: the CLIP text encoder, unwrapped.
        token_ids: integers of shape [batch, tokens].
        clip_skip: see `reached_layers`; the final layer norm is always applied.

    Returns:
        Embeddings of shape [batch, tokens, hidden_size].

    Raises:
        ConfigError: the text encoder has fewer layers than `clip_skip`.
    """
    if clip_skip <= 1:
        last: torch.Tensor = text_encoder(token_ids)[0]
        return last
    layers = reached_layers(text_encoder.config.num_hidden_layers, clip_skip)
    hidden = text_encoder(token_ids, output_hidden_states=True).hidden_states[layers]  # of 0 layers: the embeddings
    normed: torch.Tensor = body(text_encoder).final_layer_norm(hidden)
    return normed
