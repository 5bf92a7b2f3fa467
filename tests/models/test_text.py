from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from ed_train.errors import ConfigError
from ed_train.models.text import text_embeddings
from transformers import CLIPTextModel, CLIPTextModelWithProjection

TOKENS = torch.randint(0, 512, (2, 77), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("skip", "layers"), [(0, 3), (1, 3), (2, 2), (3, 1)])
def test_clip_skip_counts_layers_from_the_end_as_everydream_2_does(skip: int, layers: int, sd1: Path) -> None:
    text_encoder = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    shorter = copy.deepcopy(text_encoder)
    body = getattr(shorter, "text_model", shorter)
    body.encoder.layers = body.encoder.layers[:layers]
    with torch.no_grad():
        skipped = text_embeddings(text_encoder, TOKENS, skip)
        assert skipped.shape == (2, 77, 16)
        torch.testing.assert_close(skipped, shorter(TOKENS)[0], rtol=0, atol=0)


def test_clip_skip_beyond_the_first_layer_is_refused(sd1: Path) -> None:
    text_encoder = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    with pytest.raises(ConfigError, match=r"clip_skip: got 4; expected at most 3, the text encoder's number of layers"):
        text_embeddings(text_encoder, TOKENS, 4)


def test_the_layout_with_a_text_model_level_gives_the_same(sd1: Path) -> None:
    new = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    old = CLIPTextModelWithProjection.from_pretrained(sd1 / "text_encoder")
    with torch.no_grad():
        hidden = old(TOKENS, output_hidden_states=True).hidden_states[-2]
        expected = old.text_model.final_layer_norm(hidden)
        torch.testing.assert_close(text_embeddings(new, TOKENS, 2), expected, rtol=0, atol=0)
