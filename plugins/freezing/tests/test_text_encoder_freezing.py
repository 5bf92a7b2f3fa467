from __future__ import annotations

import warnings

import pytest
import torch
from ed_train_freezing import ed_register_freeze_policies
from ed_train_freezing.text_encoder import TextEncoderFreezing, freeze_text_encoder
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

LAYERS = 3


class TextModelLevel(torch.nn.Module):
    """The layout of CLIPTextModel before transformers 5.6: everything is one level down, in `text_model`."""

    def __init__(self, text_model: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = text_model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.text_model(input_ids=input_ids).last_hidden_state


def make(layout: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    if layout == "plain":
        return CLIPTextModel(config)
    projected = CLIPTextModelWithProjection(config)
    return projected if layout == "projection" else TextModelLevel(projected.text_model)


LAYOUTS = ["plain", "projection", "text_model"]


def freeze(module: torch.nn.Module, **options) -> set[str]:
    """Apply the policy; returns the frozen names without the `text_model.` level."""
    return {name.removeprefix("text_model.") for name in freeze_text_encoder(module, TextEncoderFreezing(**options))}


def frozen_parts(frozen: set[str]) -> set[str]:
    """The layers' numbers and the other parts, e.g. {"0", "1", "embeddings"}."""
    return {name.split(".")[2] if name.startswith("encoder.layers.") else name.split(".")[0] for name in frozen}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, set()),
        ({"unfreeze_last_n_layers": None, "freeze_front_n_layers": None}, set()),
        ({"unfreeze_last_n_layers": 2}, {"0", "embeddings"}),
        ({"unfreeze_final_n_layers": 1}, {"0", "1", "embeddings"}),
        ({"unfreeze_last_n_layers": 2, "unfreeze_final_n_layers": 2}, {"0", "embeddings"}),
        ({"unfreeze_last_n_layers": None, "unfreeze_final_n_layers": 2}, {"0", "embeddings"}),
        ({"unfreeze_last_n_layers": 0}, {"0", "1", "2", "embeddings"}),
        ({"unfreeze_last_n_layers": 3}, set()),
        ({"unfreeze_last_n_layers": 99}, set()),
        ({"unfreeze_last_n_layers": 2, "freeze_embeddings": False}, {"0"}),
        ({"unfreeze_last_n_layers": 2, "freeze_final_layer_norm": True}, {"0", "embeddings", "final_layer_norm"}),
        ({"unfreeze_last_n_layers": 0, "freeze_embeddings": False}, {"0", "1", "2"}),
        ({"freeze_embeddings": True}, {"embeddings"}),
        ({"freeze_final_layer_norm": True}, {"final_layer_norm"}),
        ({"freeze_final_layer_norm": False, "unfreeze_last_n_layers": 2}, {"0", "embeddings"}),
    ],
)
def test_what_is_frozen(layout, options, parts):
    module = make(layout)
    frozen = freeze(module, **options)
    assert frozen_parts(frozen) == parts
    trains = {n.removeprefix("text_model.") for n, p in module.named_parameters() if p.requires_grad}
    everything = {n.removeprefix("text_model.") for n, _ in module.named_parameters()}
    assert (trains | frozen, trains & frozen) == (everything, set())


@pytest.mark.filterwarnings("ignore:freeze_front_n_layers")
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"freeze_front_n_layers": 1}, {"0", "embeddings"}),
        ({"freeze_front_n_layers": -2}, {"0", "embeddings"}),
        ({"freeze_front_n_layers": -1}, {"0", "1", "embeddings"}),
        ({"freeze_front_n_layers": 0}, set()),
        ({"freeze_front_n_layers": 99}, {"0", "1", "2", "embeddings"}),
        ({"freeze_front_n_layers": -4}, set()),
        ({"freeze_front_n_layers": -99}, set()),
        ({"freeze_front_n_layers": 1, "freeze_embeddings": False}, {"0"}),
        # null never wins over a value: the original froze nothing here
        ({"freeze_front_n_layers": -2, "unfreeze_last_n_layers": None}, {"0", "embeddings"}),
        ({"freeze_front_n_layers": None, "unfreeze_last_n_layers": 2}, {"0", "embeddings"}),
        # both, in agreement
        ({"freeze_front_n_layers": -2, "unfreeze_last_n_layers": 2}, {"0", "embeddings"}),
        ({"freeze_front_n_layers": 1, "unfreeze_final_n_layers": 2}, {"0", "embeddings"}),
        ({"freeze_front_n_layers": 0, "unfreeze_last_n_layers": 12}, set()),
    ],
)
def test_legacy_key(options, parts):
    assert frozen_parts(freeze(make("plain"), **options)) == parts


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        (-2, "write unfreeze_last_n_layers=2"),
        (1, "write unfreeze_last_n_layers=the number of layers - 1"),
        (0, "remove it, since it freezes nothing"),
    ],
)
def test_legacy_key_gives_one_deprecation_line(value, instead):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TextEncoderFreezing(freeze_front_n_layers=value)
    expected = f"freeze_front_n_layers={value} is deprecated; {instead}"
    assert [(w.category, str(w.message)) for w in caught] == [(DeprecationWarning, expected)]


def test_other_keys_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextEncoderFreezing(unfreeze_last_n_layers=2, freeze_embeddings=False)


@pytest.mark.filterwarnings("ignore:freeze_front_n_layers")
@pytest.mark.parametrize(
    "options",
    [
        {"unfreeze_last_n_layers": 2, "unfreeze_final_n_layers": 3},
        {"unfreeze_last_n_layers": 0, "unfreeze_final_n_layers": 1},
        {"unfreeze_last_n_layers": 2, "freeze_front_n_layers": -3},
        {"unfreeze_final_n_layers": 0, "freeze_front_n_layers": -3},
    ],
)
def test_contradictions_are_found_without_the_model(options):
    with pytest.raises(ValueError, match="contradict"):
        TextEncoderFreezing(**options)


@pytest.mark.filterwarnings("ignore:freeze_front_n_layers")
@pytest.mark.parametrize("front", [0, 2, 3])
def test_contradictions_that_depend_on_the_number_of_layers(front):
    module, config = make("plain"), TextEncoderFreezing(freeze_front_n_layers=front, unfreeze_last_n_layers=2)
    with pytest.raises(ValueError, match=f"freezes {front} of the 3 layers, unfreeze_last_n_layers=2 freezes 1"):
        freeze_text_encoder(module, config)
    assert all(p.requires_grad for p in module.parameters())


def test_another_kind_of_module_is_refused():
    with pytest.raises(ValueError, match="cannot freeze a Linear"):
        freeze_text_encoder(torch.nn.Linear(2, 2), TextEncoderFreezing(unfreeze_last_n_layers=2))


def test_policy():
    policies = {policy.section: policy for policy in ed_register_freeze_policies()}
    assert policies["text_encoder_freezing"].component == "text_encoder"
