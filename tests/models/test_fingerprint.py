"""What changes the key of a cached embedding, and what does not; a text encoder in two parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from ed_train.models.fingerprint import CONFIG_DEFAULTS, front_digest
from ed_train.models.load import SdModel
from ed_train.models.memo import FileMemo
from ed_train.models.reference import ModelReference
from ed_train.models.text import text_embeddings
from ed_train.models.text_parts import LastPart, front_part, frozen_layers
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

TOKENS = torch.randint(0, 512, (2, 77), generator=torch.Generator().manual_seed(0))


def digest(folder: Path, layers: int = 2, *, normed: bool = False) -> str:
    tensors, config = SdModel(ModelReference("folder", str(folder))).tensor_digests("text_encoder")
    return front_digest(tensors, config, layers, normed=normed)


def edit(folder: Path, name: str) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    state[f"text_model.{name}"].view(-1)[0] += 1
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("embeddings.token_embedding.weight", True),
        ("encoder.layers.1.mlp.fc1.bias", True),
        ("encoder.layers.2.mlp.fc1.bias", False),
        ("final_layer_norm.weight", False),
    ],
)
def test_only_weights_of_the_front_change_its_digest(own_sd1: Path, name: str, changes: bool) -> None:
    before = digest(own_sd1)
    edit(own_sd1, name)
    assert (digest(own_sd1) != before) == changes


def test_the_final_norm_counts_where_it_belongs_to_the_front(own_sd1: Path) -> None:
    before = digest(own_sd1, 3, normed=True)
    assert before != digest(own_sd1, 3)
    edit(own_sd1, "final_layer_norm.bias")
    assert digest(own_sd1, 3, normed=True) != before


def test_the_form_of_the_file_does_not_count(own_sd1: Path) -> None:
    before, folder = digest(own_sd1), own_sd1 / "text_encoder"
    weights = folder / "model.safetensors"
    state = {name.removeprefix("text_model."): tensor for name, tensor in load_file(weights).items()}
    save_file({**state, "embeddings.position_ids": torch.arange(77)}, weights)
    assert digest(own_sd1) == before
    torch.save(state, folder / "pytorch_model.bin")
    weights.unlink()
    assert digest(own_sd1) == before


def test_configuration_that_the_output_depends_on(own_sd1: Path) -> None:
    before, path = digest(own_sd1), own_sd1 / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_name_or_path": "x", "transformers_version": "9"}))
    assert digest(own_sd1) == before
    for key in CONFIG_DEFAULTS:
        path.write_text(json.dumps({**config, key: "gelu" if key == "hidden_act" else 1}))
        assert digest(own_sd1) != before, key


def test_defaults_are_those_of_transformers() -> None:
    assert CLIPTextConfig().to_dict().items() >= CONFIG_DEFAULTS.items()


def test_hashes_are_remembered_as_long_as_the_file_stays(tmp_path: Path) -> None:
    computed = []
    file = tmp_path / "weights"
    file.write_bytes(b"one")

    def value(kind: str = "k") -> int:
        memo = FileMemo(tmp_path / "new" / "memo.json")  # as the next run opens it
        return memo.value(file, kind, lambda: computed.append(kind) or len(computed))

    assert [value(), value(), value("other"), value()] == [1, 1, 2, 1]
    os.utime(file, ns=(1, 1))
    assert value() == 3
    file.write_bytes(b"longer")
    assert value() == 4
    (tmp_path / "new" / "memo.json").write_text("damaged")
    assert value() == 5
    (tmp_path / "new" / "memo.json").unlink()
    (tmp_path / "new" / "memo.json").mkdir()
    assert value() == 6  # which cannot be kept


class OldLayout(torch.nn.Module):
    """CLIPTextModel as transformers before 5.6 has it: everything is one level down."""

    def __init__(self, text_model: CLIPTextModel) -> None:
        super().__init__()
        self.text_model, self.config = text_model, text_model.config

    def forward(self, input_ids: torch.Tensor, **options: object):
        return self.text_model(input_ids=input_ids, **options)


@pytest.mark.parametrize("layout", [lambda module: module, OldLayout], ids=["new", "old"])
@pytest.mark.parametrize(("front", "skip"), [(0, 0), (1, 0), (3, 0), (2, 1)])
def test_both_parts_together_are_the_whole_in_both_layouts(sd1: Path, layout, front: int, skip: int) -> None:
    text_encoder = layout(CLIPTextModel.from_pretrained(sd1 / "text_encoder"))
    inner = getattr(text_encoder, "text_model", text_encoder)
    whole = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    text_encoder.requires_grad_(False)
    inner.final_layer_norm.requires_grad_(True)
    for layer in inner.encoder.layers[front:]:
        layer.requires_grad_(True)
    inner.embeddings.requires_grad_(front == 0)
    assert frozen_layers(text_encoder, skip) == front
    hidden = front_part(text_encoder, front, normed=False)(TOKENS)[0].detach() if front else None
    last = LastPart(text_encoder, front, skip)
    embeddings = last(TOKENS, hidden)
    assert torch.equal(embeddings, text_embeddings(whole, TOKENS, skip))
    assert {id(p) for p in last.parameters()} <= {id(p) for p in text_encoder.parameters()}
    embeddings.sum().backward()
    reached = inner.encoder.layers[front : 3 - skip]
    assert all(p.grad is not None for layer in reached for p in layer.parameters())
    assert len(inner.encoder.layers) == 3  # the whole is as it was
    assert torch.equal(front_part(text_encoder, 3, normed=True)(TOKENS)[0], text_embeddings(whole, TOKENS))
