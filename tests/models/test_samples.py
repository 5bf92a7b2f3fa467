from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from ed_train.config.describe import annotations_of
from ed_train.models.grid import Sample, sample_grid
from ed_train.models.load import SdModel
from ed_train.models.prompts import SamplePrompt, SampleSettings, read_sample_prompts
from ed_train.models.reference import ModelReference
from ed_train.models.samplers import SAMPLERS
from ed_train.models.samples import draw_samples, save_samples
from PIL import Image, ImageDraw

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


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_a_samplers_own_noise_comes_from_the_pictures_seed(scheduler: Any, parts: Parts) -> None:
    prompts = (SamplePrompt(prompt="a dog", seed=1), SamplePrompt(prompt="a cat", seed=2))
    both = SampleSettings(samples=prompts, num_inference_steps=3, scheduler=scheduler)
    alone = SampleSettings(samples=prompts[1:], num_inference_steps=3, scheduler=scheduler)
    together = pixels(draw_samples(both, **parts)[1].image)
    assert abs(together - draw_one(alone, parts)).max() <= 1
    assert together.std() > 1


def test_an_aspect_ratio_and_a_resolution_say_the_size(parts: Parts) -> None:
    prompts = (
        SamplePrompt(prompt="a", aspect_ratio=1.9),
        SamplePrompt(prompt="b"),
        SamplePrompt(prompt="c", size=(64, 128)),
    )
    settings = SampleSettings(samples=prompts, num_inference_steps=1, resolution=128)
    assert [s.image.size for s in draw_samples(settings, **parts)] == [(192, 64), (128, 128), (64, 128)]


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
    assert (draw_one(settings, parts, clip_skip=1) == draw_one(settings, parts)).all()
    assert (draw_one(settings, parts, clip_skip=2) != draw_one(settings, parts)).any()


def test_v_prediction_is_respected(sd2: Path) -> None:
    parts = parts_of(sd2)
    as_epsilon = {**parts["scheduler_config"], "prediction_type": "epsilon"}
    assert (draw_one(CATS, parts) != draw_one(CATS, parts, scheduler_config=as_epsilon)).any()


@pytest.mark.parametrize("scheduler", SAMPLERS)
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


def sample(row: int, colour: str, size: tuple[int, int] = (64, 64), **more: Any) -> Sample:
    given = {"prompt": f"prompt {row}", "negative_prompt": "", "seed": 5, "cfg": 7.0, **more}
    return Sample(f"0{row}-x-cfg{given['cfg']:g}", row, image=Image.new("RGB", size, colour), **given)


def places(grid: Image.Image, colour: list[int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what has this colour."""
    rows, columns = np.nonzero((pixels(grid) == colour).all(axis=2))
    return columns.min(), rows.min(), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_files_and_grid(tmp_path: Path) -> None:
    samples = [sample(i, colour) for i, colour in enumerate(["red", "blue", "lime"])]
    grid = sample_grid(samples, "step 250")
    paths = save_samples(samples, grid, tmp_path / "samples", "00000250")
    assert [p.name for p in paths] == [
        "00000250-00-x-cfg7.jpg", "00000250-01-x-cfg7.jpg", "00000250-02-x-cfg7.jpg", "00000250-grid.jpg",
    ]  # fmt: skip
    assert sorted(paths) == sorted((tmp_path / "samples").iterdir())
    picture = Image.open(paths[1])
    assert pixels(picture)[32, 32].tolist() == pytest.approx([0, 0, 254], abs=3)
    assert picture.info["comment"] == b"prompt 1 | cfg 7, seed 5"
    assert Image.open(paths[3]).size == grid.size
    assert Image.open(save_samples(samples, grid, tmp_path, "x", suffix=".png")[0]).format == "PNG"


def test_a_row_for_each_prompt_and_in_it_a_picture_for_each_scale() -> None:
    """Whole pictures of any size, and none under another or under a text."""
    samples = [
        sample(0, "red", cfg=1.0), sample(0, "blue", cfg=7.0),
        sample(1, "lime", (128, 64), cfg=1.0), sample(1, "cyan", (128, 64), cfg=7.0),
        sample(2, "magenta", (64, 128), cfg=1.0), sample(2, "yellow", (64, 128), cfg=7.0),
    ]  # fmt: skip
    grid = sample_grid(samples, "step 250")
    found = [places(grid, list(s.image.getpixel((0, 0)))) for s in samples]  # type: ignore[arg-type]
    assert [place[2:] for place in found] == [s.image.size for s in samples]
    for left, right in zip(found[::2], found[1::2], strict=True):
        assert left[1] == right[1]
        assert left[0] + left[2] < right[0]
    tops = [place[1] for place in found[::2]]
    assert tops[0] == tops[1] < tops[2], "two prompts with two pictures fit side by side"


def test_no_text_is_cut_off_and_each_stands_above_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float]] = []
    heights: list[float] = []
    text = ImageDraw.ImageDraw.text

    def spy(pen: ImageDraw.ImageDraw, corner: tuple[int, int], line: str, **more: Any) -> None:
        heights.append(more["font"].getbbox("cfg")[3])
        drawn.append((line, corner[0] + more["font"].getlength(line)))
        text(pen, corner, line, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    prompt = "an astronaut who rides a horse through sunflowers " * 3 + "x" * 90
    samples = [
        sample(0, "red", (512, 512), prompt=prompt, negative_prompt="blurry", cfg=c, seed=42) for c in (1.0, 7.5)
    ]
    grid = sample_grid(samples, "myproj: step00250, step 250 (ddim, 30 steps of denoising)")
    lines = [line for line, _ in drawn]
    assert "".join(lines[1:-4]).replace(" ", "") == prompt.replace(" ", "")
    assert lines[-4:] == ["not: blurry", "seed 42", "cfg 1", "cfg 7.5"]
    assert max(end for _, end in drawn) <= grid.width
    assert min(heights) >= 512 / 30, "legible beside pictures of this size"


def test_one_scale_stands_with_the_seed_and_four_prompts_in_a_row() -> None:
    colours = ["red", "blue", "lime", "cyan", "magenta"]
    prompts = ["a cat", "a cat that sits beside a dog on a red sofa in the rain", "a", "b", "c"]  # of 1 and 2 lines
    of_each = zip(colours, prompts, strict=True)
    grid = sample_grid([sample(i, c, (256, 256), prompt=p) for i, (c, p) in enumerate(of_each)], "before")
    tops = [places(grid, list(Image.new("RGB", (1, 1), c).getpixel((0, 0))))[1] for c in colours]  # type: ignore[arg-type]
    assert tops[0] == tops[1] == tops[2] == tops[3] < tops[4]


def test_labels_in_any_script_are_drawn() -> None:
    sample_grid([sample(0, "red", prompt="猫 ☃ \U0001f600 ête\nzwei")], "x")


def test_the_example_file_is_drawn_as_it_says(parts: Parts, tmp_path: Path) -> None:
    """At an eighth of its sizes and with two steps."""
    content = json.loads((Path(__file__).parents[2] / "examples" / "sample_prompts.json").read_text())
    content["num_inference_steps"] = 2
    assert content.keys() - {"doc"} == annotations_of(SampleSettings).keys(), "it has every setting"
    assert {key for entry in content["samples"] for key in entry} == annotations_of(SamplePrompt).keys()
    for entry in content["samples"]:
        if "size" in entry:
            entry["size"] = [side // 8 for side in entry["size"]]
    (tmp_path / "prompts.json").write_text(json.dumps(content))
    settings, problems = read_sample_prompts(tmp_path / "prompts.json")
    assert settings is not None, problems
    samples = draw_samples(settings, **parts, captions=["a caption"])
    assert [(s.row, s.cfg, s.image.size, s.seed) for s in samples] == [
        (row, cfg, size, seed)
        for row, (size, seed) in enumerate([((96, 64), 555), ((64, 64), 7), ((64, 96), 555)])
        for cfg in (1, 4, 7)
    ]
    assert samples[0].negative_prompt == "blurry, low quality"
    assert samples[-1].prompt == "a caption"
    sample_grid(samples, "before")


def test_bars_of_the_denoising_steps_are_for_terminals(parts: Parts, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SampleSettings(samples=CATS.samples, num_inference_steps=2, show_progress_bars=True)
    draw_one(settings, parts)
    assert "samples:" not in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    draw_one(settings, parts)
    assert "samples:" in capsys.readouterr().err
