"""Text embeddings from the cache: the same bits as without it, fewer layers in each step, less in memory."""

from __future__ import annotations

import gc
import json
import os
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from ed_train.models.text import text_embeddings
from ed_train.train.step import train_step
from safetensors.torch import load_file, save_file
from train.resuming import assert_equal_weights

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}
LAST_2 = {**ADAMW, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}}
UNET_ALONE = {"disable_textenc_training": True}
BF16 = {"disable_amp": "false", "mixed_precision": "bf16"}
CASES = {
    "no text encoder, accumulated": (ADAMW, {**UNET_ALONE, "grad_accum": 2, "cond_dropout": 0.5}),
    "no text encoder, bf16, clip_skip": (ADAMW, {**UNET_ALONE, **BF16, "clip_skip": 2}),
    "last layers, accumulated": (LAST_2, {"grad_accum": 2, "cond_dropout": 0.5, "embedding_perturbation": 0.1}),
    "last layers, bf16, clip_skip": (LAST_2, {**BF16, "clip_skip": 2}),
    "last layers, gradient checkpointing": (LAST_2, {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_equal_with_and_without_the_cache(case, make_session, write_optimizer) -> None:
    optimizer, settings = CASES[case]
    write_optimizer(optimizer)
    seen = []
    for cached in (False, True):
        session = make_session(**settings, cache_text_embeddings=cached)
        assert (session.text.cache is not None) == cached
        losses = []
        for window in islice(session.windows(), 2):
            assert all((batch.text is not None) == cached for batch in window)
            losses.append(train_step(session, window).loss)
        if optimizer is LAST_2:
            assert 0 < session.text.layers < 4
            batch = window[0]
            with session.accelerator.autocast():
                plain = text_embeddings(session.text_encoder, batch.token_ids, session.run.train.clip_skip)
            assert torch.equal(session.text.embeddings(batch.token_ids, batch.text), plain.float())
        seen.append([*losses, *(p.detach().clone() for c in session.components for p in c.parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_embeddings_are_those_of_the_whole_text_encoder_in_a_batch(make_session, micro_model) -> None:
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel.from_pretrained(micro_model / "text_encoder").eval()
    session = make_session(**UNET_ALONE, cond_dropout=0.5, batch_size=4)
    batches = list(session.loader.iterate(0))
    assert any("" in batch.captions for batch in batches)
    for batch in batches:
        with torch.no_grad():
            assert torch.equal(session.text.embeddings(batch.token_ids, batch.text), text_encoder(batch.token_ids)[0])


def run_layers(session, batch) -> list[int]:
    """The layers of the text encoder that run while a batch is embedded, by their number."""
    run: list[int] = []
    layers = session.text_encoder.encoder.layers
    hooks = [layer.register_forward_hook(lambda *_, n=n: run.append(n)) for n, layer in enumerate(layers)]
    session.text.embeddings(batch.token_ids, batch.text)
    for hook in hooks:
        hook.remove()
    return run


def test_only_the_layers_that_train_run_in_a_step(make_session, write_optimizer) -> None:
    write_optimizer(LAST_2)
    for settings, expected in (({"clip_skip": 2}, [2]), ({"cache_text_embeddings": False}, [0, 1, 2, 3])):
        session = make_session(**settings)
        assert run_layers(session, next(session.loader.iterate(0))) == expected


def test_any_way_of_freezing_counts(make_session, write_optimizer) -> None:
    """The front is found by what requires no gradient: embeddings that train leave nothing to cache."""
    write_optimizer({**ADAMW, "text_encoder_freezing": {"unfreeze_last_n_layers": 2, "freeze_embeddings": False}})
    session = make_session()
    assert session.text.cache is None
    assert run_layers(session, next(session.loader.iterate(0))) == [0, 1, 2, 3]
    write_optimizer({**ADAMW, "text_encoder_freezing": {"unfreeze_last_n_layers": 0}})
    session = make_session()  # the final layer norm alone
    assert run_layers(session, next(session.loader.iterate(0))) == []


def test_captions_that_are_not_known_before_training(make_session, write_optimizer, capsys) -> None:
    write_optimizer(LAST_2)
    session = make_session(shuffle_tags=True)
    assert session.text.cache is None
    assert "computed in every step, since shuffle_tags makes new captions" in capsys.readouterr().out
    session = make_session()  # a validation's captions, which nobody has prepared
    other = next(session.loader.iterate(0)).token_ids.flip(1)
    assert session.text.cache.get(list(other)) is None
    plain = text_embeddings(session.text_encoder, other)
    assert torch.equal(session.text.embeddings(other), plain)
    session.text.prepare(list(other))
    assert len(session.text.cache.get(list(other))) == 2
    assert torch.equal(session.text.embeddings(other), plain)


def of_class(*names: str) -> int:
    gc.collect()
    return sum(type(thing).__name__ in names for thing in gc.get_objects())


def overwrite(path: Path, content: bytes) -> None:
    """Change a file behind its size and modification time, so that whoever reads it fails."""
    stat = path.stat()
    assert len(content) == stat.st_size
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_warm_start_loads_neither_vae_nor_text_encoder_and_decodes_nothing(
    flags, make_session, micro_model, photos, tmp_path
) -> None:
    model = Path(shutil.copytree(micro_model, tmp_path / "model"))
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    own = {**UNET_ALONE, "resume_ckpt": model, "data_root": data, "cache_dir": tmp_path / "cache"}
    cold = next(make_session(**own).loader.iterate(0))
    for part in ("vae", "text_encoder"):
        (weights,) = (model / part).glob("*.safetensors")
        save_file({n: t * float("nan") for n, t in load_file(weights).items()}, tmp_path / "nan", {"format": "pt"})
        overwrite(weights, (tmp_path / "nan").read_bytes())
    for photo in data.glob("*.jpg"):
        content = photo.read_bytes()
        overwrite(photo, content[:1000] + bytes(len(content) - 1000))
    before = of_class("CLIPTextModel", "AutoencoderKL")
    session = make_session(**own)
    warm = next(session.loader.iterate(0))
    assert torch.equal(cold.latents_mean, warm.latents_mean)
    assert torch.equal(cold.text, warm.text)
    train_step(session, [warm])
    assert session.text_encoder is None
    assert of_class("CLIPTextModel", "AutoencoderKL") == before


@pytest.mark.slow
def test_samples_and_checkpoints_have_the_text_encoder_that_is_not_in_memory(run_cli, micro_model, tmp_path) -> None:
    prompts = {"samples": [{"prompt": "a cat", "size": [64, 64]}], "num_inference_steps": 2}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    found: list[dict[str, bytes]] = []
    files: list[list[Path]] = []
    for cached in (True, False):
        name = f"cached-{cached}"
        given = {**UNET_ALONE, "cache_text_embeddings": cached, "run_name": name, "max_steps": 2}
        given |= {
            "sample_prompts": tmp_path / "prompts.json",
            "sample_steps": 1,
            "ema_decay_rate": 0.9,
            "save_single_file": True,
        }
        assert run_cli(**given) == 0
        folder = tmp_path / "logs" / name
        found.append({path.name: path.read_bytes() for path in (folder / "samples").iterdir()})
        checkpoints = [path for path in (folder / "ckpts").iterdir() if path.is_dir()]
        files.append(sorted((folder / "ckpts").glob("*.safetensors")))
        assert len(checkpoints) == 2  # with its average
        for checkpoint in checkpoints:
            weights = "text_encoder/model.safetensors"
            assert_equal_weights(micro_model / weights, checkpoint / weights)
    assert found[0] == found[1]
    assert len(found[0]) > 2
    for one, other in zip(*files, strict=True):
        assert_equal_weights(one, other)
