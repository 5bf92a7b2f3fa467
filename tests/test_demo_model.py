"""The recipe of the model that draws shapes: its pictures, its tokenizer, its VAE, and the whole in a few steps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_model.scenes import COLOURS, SHAPES, Scene, draw, random_scene, write_training_pictures
from PIL import Image


def mean_colour(picture: Image.Image, box: tuple[int, int, int, int]) -> Any:
    return np.asarray(picture.crop(box), dtype=float).mean(axis=(0, 1))


def nearest(colour: Any) -> str:
    return min(COLOURS, key=lambda name: float(np.abs(colour - COLOURS[name]).sum()))


def test_the_tokenizer_has_clips_format_and_knows_the_words(tmp_path: Path) -> None:
    from demo_model.start import vocabulary_captions
    from demo_model.tokenizer import MAX_LENGTH, write_tokenizer
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path, vocabulary_captions())
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == MAX_LENGTH
    rng = random.Random(1)
    for caption in (random_scene(rng).caption for _ in range(500)):
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= MAX_LENGTH
    ids = tokenizer("A zorb, 5 éclairs").input_ids  # words that it does not know, letter by letter if need be
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a zorb , 5 éclairs"
    assert tokenizer.get_vocab() == json.loads((tmp_path / "vocab.json").read_text("utf-8"))


def test_a_vae_begins_with_mean_colours() -> None:
    import torch
    from demo_model.vae import begin_with_mean_colours, new_vae, random_batch

    torch.manual_seed(0)
    vae, batch = new_vae(), random_batch(8, random.Random(0))
    begin_with_mean_colours(vae)
    with torch.no_grad():
        latents = vae.encode(batch).latent_dist.mean
        decoded = vae.decode(latents).sample
    means = torch.nn.functional.avg_pool2d(batch, 4)
    assert (latents[:, :3] - means).abs().mean() < 0.1
    assert (decoded - batch).abs().mean() < 0.2  # of a range of 2; a picture of one grey is at 0.6


def test_scenes_are_reproducible_and_leave_out_what_is_held_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_training_pictures(tmp_path / name, 40, seed=3)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert len(names) == 80
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    every = [Scene(s, c, g) for s in SHAPES for c in COLOURS for g in COLOURS if c != g]
    unseen = {scene.caption for scene in every if scene.held_out}
    assert 0.1 < len(unseen) / len(every) < 0.25
    assert "a red circle on a blue background" in unseen
    captions = {(tmp_path / "a" / name).read_text().strip() for name in names if name.endswith(".txt")}
    assert len(captions) > 30
    assert not captions & unseen


def test_a_scene_looks_as_its_caption_says() -> None:
    rng = random.Random(2)
    for shape in set(SHAPES) - {"ring"}:
        picture = draw(Scene(shape, "yellow", "purple"), rng)
        assert nearest(mean_colour(picture, (30, 30, 34, 34))) == "yellow"
        assert nearest(mean_colour(picture, (0, 0, 8, 8))) == "purple"
    left = draw(Scene("ring", "black", "orange", place="on the left"), rng)
    assert mean_colour(left, (0, 0, 32, 64)).sum() < mean_colour(left, (32, 0, 64, 64)).sum()
    assert Scene("ring", "black", "orange", "striped", "small", "on the left").caption == (
        "a small black ring on an orange striped background on the left"
    )


def test_a_judge_tells_painted_shapes_apart() -> None:
    from demo_model.judge import shape_in

    rng = random.Random(3)
    scenes = [Scene(shape, "yellow", "purple", size=size) for shape in SHAPES for size in ("", "large")]
    assert [shape_in(draw(scene, rng), scene) for scene in scenes] == [scene.shape for scene in scenes]
    assert shape_in(Image.new("RGB", (64, 64), COLOURS["purple"]), scenes[0]) == ""


def test_the_shipped_model_draws_what_it_has_not_seen() -> None:
    from demo.demo import MODEL
    from demo_model.drawing import draw as sample
    from demo_model.judge import shape_in
    from demo_model.make import held_out_scenes

    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) < 12e6
    scenes = [scene for scene in held_out_scenes() if scene.size == "large" and not scene.pattern]
    pictures = sample(MODEL, [scene.caption for scene in scenes], seeds=range(len(scenes)), steps=15)
    right = [shape_in(picture, scene) == scene.shape for picture, scene in zip(pictures, scenes, strict=True)]
    grounds = [nearest(mean_colour(picture, (0, 0, 8, 8))) for picture in pictures]
    assert len(scenes) >= 6
    assert sum(right) >= len(scenes) - 2
    assert grounds == [scene.ground for scene in scenes]


@pytest.mark.slow
def test_a_model_can_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from demo_model import make
    from demo_model.drawing import draw as sample

    monkeypatch.setattr(make, "VAE_STEPS", 2)
    monkeypatch.setattr(make, "DECODER_STEPS", 2)
    monkeypatch.setattr(make, "PICTURES", 32)
    monkeypatch.setattr(make, "JUDGED", 2)
    make.make(tmp_path / "work", tmp_path / "model", ["--max_steps", "2", "--sample_steps", "0"])
    assert (tmp_path / "model" / "curve.png").exists()
    assert (tmp_path / "model" / "held_out.png").exists()
    assert sample(tmp_path / "model", ["a red circle"], seeds=[1], steps=2)[0].size == (64, 64)
