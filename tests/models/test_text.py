from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from ed_train.errors import ConfigError
from ed_train.models.text import text_embeddings
from transformers import CLIPTextModel, CLIPTextModelWithProjection

TOKENS = torch.randint(0, 512, (2, 77), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_clip_skip_is_the_encoder_without_its_last_layers(skip: int, sd1: Path) -> None:
    text_encoder = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    shorter = copy.deepcopy(text_encoder)
    body = getattr(shorter, "text_model", shorter)
    body.encoder.layers = body.encoder.layers[: 3 - skip]
    with torch.no_grad():
        skipped = text_embeddings(text_encoder, TOKENS, skip)
        assert skipped.shape == (2, 77, 16)
        torch.testing.assert_close(skipped, shorter(TOKENS)[0], rtol=0, atol=0)


def test_clip_skip_of_all_layers_is_refused(sd1: Path) -> None:
    text_encoder = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    with pytest.raises(ConfigError, match=r"clip_skip: got 3; expected less than the text encoder's 3 layers"):
        text_embeddings(text_encoder, TOKENS, 3)


def test_the_layout_with_a_text_model_level_gives_the_same(sd1: Path) -> None:
    new = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    old = CLIPTextModelWithProjection.from_pretrained(sd1 / "text_encoder")
    with torch.no_grad():
        hidden = old(TOKENS, output_hidden_states=True).hidden_states[-2]
        expected = old.text_model.final_layer_norm(hidden)
        torch.testing.assert_close(text_embeddings(new, TOKENS, 1), expected, rtol=0, atol=0)
