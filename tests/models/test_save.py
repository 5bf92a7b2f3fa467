from __future__ import annotations

import json
import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from ed_train.errors import CheckpointError
from ed_train.models.atomic import atomic_folder
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference, folder_problems
from ed_train.models.save import write_pipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Parts = dict[str, Any]


@pytest.fixture
def parts(sd1: Path) -> Parts:
    model = SdModel(ModelReference("folder", str(sd1)))
    return {
        "unet": model.load_unet(),
        "text_encoder": model.load_text_encoder(),
        "vae": model.load_vae(),
        "tokenizer": model.load_tokenizer(),
        "scheduler_config": model.scheduler_config(),
    }


def save(target: Path, parts: Parts, **changes: Any) -> Path:
    with atomic_folder(target) as temp:
        write_pipeline(temp, **{**parts, **changes})
    return target


def assert_same(module: torch.nn.Module, expected: torch.nn.Module) -> None:
    state, wanted = module.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in state)


def test_stable_diffusion_pipeline_opens_what_is_saved(parts: Parts, tmp_path: Path) -> None:
    with torch.no_grad():
        for module in (parts["unet"], parts["text_encoder"]):
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder = save(tmp_path / "saved", parts, extra={"_ed_train": {"step": 3}})
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    for part in ("unet", "text_encoder", "vae"):
        assert_same(getattr(pipeline, part), parts[part])
    assert pipeline.tokenizer("a cat").input_ids == parts["tokenizer"]("a cat").input_ids
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert pipeline.safety_checker is None
    assert pipeline.config.requires_safety_checker is False
    assert json.loads((folder / "model_index.json").read_text())["_ed_train"] == {"step": 3}
    assert folder_problems(folder) == []
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def test_what_is_saved_trains_on_as_it_was(parts: Parts, tmp_path: Path) -> None:
    model = SdModel(ModelReference("folder", str(save(tmp_path / "saved", parts))))
    assert_same(model.load_unet(), parts["unet"])
    assert_same(model.load_text_encoder(), parts["text_encoder"])
    assert model.scheduler_config() == parts["scheduler_config"]


def test_vae_and_tokenizer_are_taken_over_from_a_folder(parts: Parts, sd1: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", parts, vae=sd1 / "vae", tokenizer=sd1 / "tokenizer")
    for part in ("vae", "tokenizer"):
        assert {p.name: p.read_bytes() for p in (folder / part).iterdir()} == {
            p.name: p.read_bytes() for p in (sd1 / part).iterdir()
        }
    assert_same(StableDiffusionPipeline.from_pretrained(folder).vae, parts["vae"])


def test_files_are_float32_and_readable_for_all(parts: Parts, tmp_path: Path) -> None:
    parts["unet"].half()
    folder = save(tmp_path / "saved", parts)
    for path in folder.rglob("*.safetensors"):
        assert {t.dtype for t in load_file(path).values()} == {torch.float32}
    assert {p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()} == {0o644}


def test_channels_last_weights_are_saved_as_they_are(parts: Parts, tmp_path: Path, sd1: Path) -> None:
    parts["unet"].to(memory_format=torch.channels_last)
    folder = save(tmp_path / "saved", parts)
    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    saved, source = load_file(folder / name), load_file(sd1 / name)
    assert all(torch.equal(saved[key], source[key]) for key in source)


def test_saved_text_encoder_carries_the_text_model_prefix(parts: Parts, tmp_path: Path) -> None:
    made_here = CLIPTextModel(parts["text_encoder"].config)  # transformers 5 saves this one without
    folder = save(tmp_path / "saved", parts, text_encoder=made_here)
    state = load_file(folder / "text_encoder" / "model.safetensors")
    assert len(state) == len(made_here.state_dict())
    assert all(name.startswith("text_model.") for name in state)
    assert_same(CLIPTextModel.from_pretrained(folder / "text_encoder"), made_here)


def test_saved_text_encoder_opens_in_the_layout_of_transformers_4(parts: Parts, tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", parts)
    old = CLIPTextModelWithProjection(parts["text_encoder"].config)  # the class that still has version 4's layout
    result = old.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["text_projection.weight"], [])
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    assert (config["architectures"], config["torch_dtype"]) == (["CLIPTextModel"], "float32")


def test_saved_tokenizer_has_the_files_of_transformers_4_and_5(parts: Parts, sd1: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", parts) / "tokenizer"
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    assert vocabulary == json.loads((sd1 / "tokenizer" / "vocab.json").read_text("utf-8"))
    assert (folder / "merges.txt").read_text() == "#version: 0.2\n"
    (folder / "tokenizer.json").unlink(missing_ok=True)
    assert CLIPTokenizer.from_pretrained(folder)("a cat").input_ids == parts["tokenizer"]("a cat").input_ids


def test_merges_are_written_as_they_were(tmp_path: Path, parts: Parts) -> None:
    source = tmp_path / "source"
    source.mkdir()
    vocabulary = {"c": 0, "a": 1, "t</w>": 2, "ca": 3, "cat</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    folder = save(tmp_path / "saved", parts, tokenizer=CLIPTokenizer.from_pretrained(source)) / "tokenizer"
    assert (folder / "merges.txt").read_text() == "#version: 0.2\nc a\nca t</w>\n"
    (folder / "tokenizer.json").unlink(missing_ok=True)
    assert CLIPTokenizer.from_pretrained(folder)("cat").input_ids == [5, 4, 6]


def test_no_path_of_this_machine_is_saved(parts: Parts, tmp_path: Path, sd1: Path) -> None:
    folder = save(tmp_path / "saved", parts)
    for path in folder.rglob("*.json"):
        assert str(sd1.parent) not in path.read_text("utf-8"), path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_non_finite_weights_are_never_written(part: str, value: float, parts: Parts, tmp_path: Path) -> None:
    name, parameter = next(iter(parts[part].named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = value
    with pytest.raises(CheckpointError, match=rf"{part} has NaN or infinite weights and is not saved: .*{name}"):
        save(tmp_path / "saved", parts)
    assert os.listdir(tmp_path) == []


def in_a_child(work: Callable[[], str]) -> str:
    """What `work` returns when a forked process runs it, so that limits do not reach the tests."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def run(channel: Connection) -> None:
        channel.send(work())

    process = context.Process(target=run, args=(sending,))
    process.start()
    sending.close()  # so that a child that dies ends the wait
    assert receiving.poll(60), "the child hangs"
    result: str = receiving.recv()
    process.join(10)
    return result


@pytest.mark.parametrize("limit", [0, 100, 1_000, 5_000, 50_000, 100_000, 500_000, 719_000])
def test_a_full_disk_leaves_no_checkpoint(limit: int, parts: Parts, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stops every file at `limit` bytes: another file of the checkpoint fails each time."""

    def work() -> str:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save(tmp_path / "saved", parts)
        except CheckpointError as error:
            return str(error)
        return "saved"

    message = in_a_child(work)
    assert message.startswith(f"{tmp_path}/saved was not saved: ")
    assert "File too large" in message
    assert "\n" not in message
    assert os.listdir(tmp_path) == []


def test_optimizer_state_on_a_full_disk(tmp_path: Path) -> None:
    """torch.save reports it as RuntimeError."""

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            with atomic_folder(tmp_path / "saved") as temp:
                torch.save({"state": torch.zeros(100_000)}, temp / "optimizer_unet.pt")
        except CheckpointError as error:
            return str(error)
        return "saved"

    assert in_a_child(work).startswith(f"{tmp_path}/saved was not saved: ")
    assert os.listdir(tmp_path) == []
