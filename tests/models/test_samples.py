from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from ed_train.models.load import SdModel
from ed_train.models.prompts import SamplePrompt, SampleSettings
from ed_train.models.reference import ModelReference
from ed_train.models.samples import Sample, draw_samples, labelled_grid, save_samples
from PIL import Image

Parts = dict[str, Any]
CATS = SampleSettings(samples=(SamplePrompt(prompt="a cat"),), num_inference_steps=2)


def parts_of(folder: Path, *, zero_terminal_snr: bool = False) -> Parts:
    model = SdModel(ModelReference("folder", str(folder)))
    return {
        "unet": model.load_unet(),
        "text_encoder": model.load_text_encoder(),
        "vae": model.load_vae(),
        "tokenizer": model.load_tokenizer(),
        "scheduler_config": model.scheduler_config(zero_terminal_snr=zero_terminal_snr),
        "device": "cpu",
        "resolution": 64,
    }


@pytest.fixture(scope="module")
def parts(sd1: Path) -> Parts:
    return parts_of(sd1)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def draw_one(settings: SampleSettings, parts: Parts, **changes: Any) -> np.ndarray[Any, Any]:
    (sample,) = draw_samples(settings, **{**parts, **changes})
    return pixels(sample.image)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_a_picture_is_the_one_that_diffusers_draws(scheduler: str, parts: Parts, sd1: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd1)
    config = pipeline.scheduler.config
    if scheduler == "ddim":
        pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    else:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a cat", negative_prompt="a dog", num_inference_steps=4, guidance_scale=5.0, width=128, height=64,
        generator=torch.Generator().manual_seed(9),
    ).images[0]  # fmt: skip
    sample = SamplePrompt(prompt="a cat", negative_prompt="a dog", seed=9, size=(128, 64))
    settings = SampleSettings(samples=(sample,), cfgs=(5.0,), num_inference_steps=4, scheduler=scheduler)  # type: ignore[arg-type]
    assert expected.size == (128, 64)
    assert (draw_one(settings, parts) == pixels(expected)).all()


def test_order_labels_and_stems(parts: Parts) -> None:
    settings = SampleSettings(
        samples=(
            SamplePrompt(prompt="a Cat, on ☃!", negative_prompt="dog"),
            SamplePrompt(prompt="☃", seed=3, size=(128, 64)),
        ),
        cfgs=(7.0, 1.01),
        num_inference_steps=1,
    )  # fmt: skip
    drawn = draw_samples(settings, **parts)
    assert [(s.stem, s.label, s.image.size) for s in drawn] == [
        ("00-a-cat-on-cfg7", "a Cat, on ☃! | not: dog | cfg 7, seed 555", (64, 64)),
        ("01-a-cat-on-cfg1.01", "a Cat, on ☃! | not: dog | cfg 1.01, seed 555", (64, 64)),
        ("02-empty-cfg7", "☃ | cfg 7, seed 3", (128, 64)),
        ("03-empty-cfg1.01", "☃ | cfg 1.01, seed 3", (128, 64)),
    ]


def test_a_picture_does_not_depend_on_what_is_drawn_with_it(parts: Parts) -> None:
    alone = draw_one(CATS, parts)
    company = SampleSettings(
        samples=(SamplePrompt(prompt="a dog"), SamplePrompt(prompt="a cat"), SamplePrompt(prompt="x", seed=1)),
        num_inference_steps=2,
        batch_size=2,
    )
    drawn = [pixels(s.image) for s in draw_samples(company, **parts)]
    assert abs(drawn[1] - alone).max() <= 1
    assert abs(drawn[2] - alone).max() > 1


def test_seed_minus_1_is_new_each_time_and_says_which(parts: Parts) -> None:
    settings = SampleSettings(samples=(SamplePrompt(prompt="a cat", seed=-1),), num_inference_steps=1)
    (first,), (second,) = draw_samples(settings, **parts), draw_samples(settings, **parts)
    assert first.label != second.label
    again = SampleSettings(
        samples=(SamplePrompt(prompt="a cat", seed=int(first.label.rpartition(" ")[2])),), num_inference_steps=1
    )
    assert (draw_one(again, parts) == pixels(first.image)).all()


def test_random_captions_come_from_the_data_and_stay_the_same(parts: Parts) -> None:
    settings = SampleSettings(samples=tuple(SamplePrompt(random_caption=True) for _ in range(6)), num_inference_steps=1)
    captions = [f"caption {i}" for i in range(50)]
    labels = [s.label for s in draw_samples(settings, **parts, captions=captions)]
    assert labels == [s.label for s in draw_samples(settings, **parts, captions=captions)]
    assert len(set(labels)) > 1
    assert {label.split(" | ")[0] for label in labels} <= set(captions)


def test_training_modes_and_random_state_are_as_before(parts: Parts) -> None:
    parts["unet"].train(), parts["text_encoder"].train(), parts["vae"].eval()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    draw_samples(CATS, **parts)
    assert torch.equal(torch.rand(4), expected)
    assert (parts["unet"].training, parts["text_encoder"].training, parts["vae"].training) == (True, True, False)
    parts["unet"].eval(), parts["text_encoder"].eval()


def test_an_error_restores_the_training_modes(parts: Parts) -> None:
    parts["unet"].train()
    with pytest.raises(ZeroDivisionError):
        draw_samples(CATS, **parts, autocast=lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert parts["unet"].training
    parts["unet"].eval()


def test_dropout_is_off_while_drawing(sd1: Path) -> None:
    parts = parts_of(sd1)
    expected = draw_one(CATS, parts)
    parts["unet"].train()
    for module in parts["unet"].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    assert (draw_one(CATS, parts) == expected).all()


def test_training_goes_on_after_drawing(sd1: Path) -> None:
    """Tensors made in inference mode must not leak into the weights or into autocast's cache."""
    parts = parts_of(sd1)
    draw_samples(CATS, **parts, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    unet = parts["unet"].train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = unet(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 77, 16)).sample.square().mean()
    loss.backward()
    assert all(p.grad is not None for p in unet.parameters())
    assert not any(p.is_inference() for name in ("unet", "vae", "text_encoder") for p in parts[name].parameters())


def test_the_autocast_context_is_used(parts: Parts) -> None:
    entered = []

    @contextmanager
    def autocast() -> Iterator[None]:
        entered.append(True)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    assert abs(draw_one(CATS, parts, autocast=autocast) - draw_one(CATS, parts)).max() > 0
    assert entered == [True]


def test_clip_skip_changes_the_picture(parts: Parts) -> None:
    settings = SampleSettings(samples=(SamplePrompt(prompt="a cat"),), num_inference_steps=4, cfgs=(30.0,))
    assert (draw_one(settings, parts, clip_skip=0) == draw_one(settings, parts)).all()
    assert (draw_one(settings, parts, clip_skip=2) != draw_one(settings, parts)).any()


def test_v_prediction_is_respected(sd2: Path) -> None:
    parts = parts_of(sd2)
    as_epsilon = {**parts["scheduler_config"], "prediction_type": "epsilon"}
    assert (draw_one(CATS, parts) != draw_one(CATS, parts, scheduler_config=as_epsilon)).any()


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
@pytest.mark.parametrize(("folder", "at_the_end"), [("sd1", False), ("sd2", True)])
def test_zero_terminal_snr_starts_where_the_prediction_means_something(
    folder: str, at_the_end: bool, scheduler: Any, request: pytest.FixtureRequest
) -> None:
    parts = parts_of(request.getfixturevalue(folder), zero_terminal_snr=True)
    seen: list[float] = []
    parts["unet"].register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    settings = SampleSettings(samples=(SamplePrompt(prompt="a cat"),), num_inference_steps=2, scheduler=scheduler)
    image = draw_one(settings, parts)
    assert (seen[0] == 999) is at_the_end
    assert image.std() > 1  # NaN would be drawn as black


def test_files_and_grid(tmp_path: Path) -> None:
    samples = [
        Sample(f"0{i}-x", f"label {i}", Image.new("RGB", (64, 64), c)) for i, c in enumerate(["red", "blue", "lime"])
    ]
    paths = save_samples(samples, tmp_path / "samples", "00000250", columns=2)
    assert [p.name for p in paths] == [
        "00000250-00-x.jpg", "00000250-01-x.jpg", "00000250-02-x.jpg", "00000250-grid.jpg",
    ]  # fmt: skip
    assert sorted(paths) == sorted((tmp_path / "samples").iterdir())
    assert pixels(Image.open(paths[1]))[32, 32].tolist() == pytest.approx([0, 0, 254], abs=3)
    assert Image.open(save_samples(samples, tmp_path, "x", columns=1, suffix=".png")[0]).format == "PNG"


def test_grid_places_and_labels_every_picture() -> None:
    samples = [
        Sample("a", f"a long label {i} " * 20, Image.new("RGB", (64, 48), c))
        for i, c in enumerate(["red", "blue", "lime"])
    ]
    grid = pixels(labelled_grid(samples, columns=2))
    height = grid.shape[0] // 2
    assert grid.shape[1] == 128
    assert grid[24, 32].tolist() == [255, 0, 0]
    assert grid[24, 96].tolist() == [0, 0, 255]
    assert grid[height + 24, 32].tolist() == [0, 255, 0]
    assert grid[height + 24, 96].tolist() == [255, 255, 255]
    for top, left in ((0, 0), (0, 64), (height, 0)):
        assert grid[top + 48 : top + height, left : left + 64].min() < 100  # black letters


def test_labels_in_any_script_are_drawn() -> None:
    labelled_grid([Sample("a", "猫 ☃ \U0001f600 ête", Image.new("RGB", (64, 64)))], columns=1)
