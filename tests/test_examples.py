"""The folder examples/ and the set-up: tiny models, photos, the demo, the Makefile and the pinned versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = sorted([ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")])
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from make_tiny_sd import make_tiny_sd

    return make_tiny_sd("micro", tmp_path_factory.mktemp("model") / "micro")


def test_micro_model_opens_in_diffusers_and_draws(micro: Path) -> None:
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(micro, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a cat", height=64, width=64, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert picture.size == (64, 64)
    assert np.asarray(picture).std() > 1  # no blank picture, as NaN would give


def test_text_encoder_is_saved_under_the_keys_of_published_models(micro: Path) -> None:
    from safetensors import safe_open

    with safe_open(micro / "text_encoder/model.safetensors", "pt") as weights:
        assert {key.split(".")[0] for key in weights.keys()} == {"text_model"}  # noqa: SIM118


def test_tokenizer_is_clips(micro: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(micro / "tokenizer")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("a", padding="max_length").input_ids[3:] == [49407] * 74


def test_latents_of_a_random_vae_have_the_spread_of_a_trained_one(micro: Path) -> None:
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(micro / "vae")
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 16, 16) * 2 - 1, 256, mode="bicubic")
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
    assert 0.5 < latents.std() < 2


def test_models_are_reproducible_and_leave_the_random_state_alone(micro: Path, tmp_path: Path) -> None:
    import torch
    from make_tiny_sd import make_tiny_sd

    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = make_tiny_sd("micro", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    for file in micro.rglob("*.safetensors"):
        assert (again / file.relative_to(micro)).read_bytes() == file.read_bytes(), file


def test_sd2_layout(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from make_tiny_sd import make_tiny_sd

    folder = make_tiny_sd("micro", tmp_path, sd2=True, v_prediction=True)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.unet.config.use_linear_projection
    assert pipeline.text_encoder.config.hidden_act == "gelu"
    assert pipeline.tokenizer("a", padding="max_length").input_ids[3:] == [0] * 74


@pytest.mark.parametrize("kind", ["square", "mixed"])
def test_photos_are_the_same_every_time(kind: str, tmp_path: Path) -> None:
    from make_photos import make_photos

    files = make_photos(tmp_path / "a", kind, count=16)
    again = make_photos(tmp_path / "b", kind, count=16)
    other = make_photos(tmp_path / "c", kind, count=16, seed=8)
    for suffix in (".jpg", ".txt"):
        contents = [[f.with_suffix(suffix).read_bytes() for f in made] for made in (files, again, other)]
        assert contents[0] == contents[1] != contents[2]


def test_photos_are_varied_and_captioned(tmp_path: Path) -> None:
    from make_photos import make_photos

    files = make_photos(tmp_path, "mixed")
    shapes = [re.sub(r".*_", "", file.stem) for file in files]
    assert {shape: shapes.count(shape) for shape in shapes} == {"1x1": 24, "2x1": 12, "1x2": 12, "4x1": 8, "1x4": 8}
    for file, shape in zip(files, shapes, strict=True):
        width, height = Image.open(file).size
        asked = eval(shape.replace("x", "/"))
        assert width / height == pytest.approx(asked, rel=0.07)
        assert file.with_suffix(".txt").read_text().strip()


def test_large_photos_are_large(tmp_path: Path) -> None:
    from make_photos import make_photos

    for file in make_photos(tmp_path, "large", count=3):
        assert min(Image.open(file).size) == 1200


@pytest.mark.slow
def test_demo_trains_and_shows_it(tmp_path: Path) -> None:
    from demo.demo import PROMPTS, run_demo

    picture = run_demo(tmp_path, ["--max_steps", "2", "--sample_steps", "0"])
    assert picture == tmp_path / "demo.png"
    assert Image.open(picture).width > 128 * len(PROMPTS)


def test_no_picture_that_the_demo_validates_with_is_like_one_that_it_trains_with(tmp_path: Path) -> None:
    from demo.robot import GROUNDS, OTHER_GROUNDS, write_pictures

    robots = write_pictures(tmp_path)
    captions = {name: {f.read_text() for f in (tmp_path / name).rglob("*.txt")} for name in ("training", "validation")}
    assert len(robots) == 36
    assert not set(GROUNDS) & set(OTHER_GROUNDS)
    assert not captions["training"] & captions["validation"]
    assert all("robot" in caption for caption in captions["validation"])


def test_makefile_finds_plugins_by_itself() -> None:
    files = [ROOT / "Makefile", ROOT / ".ci/run", ROOT / "requirements-dev.txt"]
    text = "".join(file.read_text() for file in files)
    for plugin in ROOT.glob("plugins/*/"):
        assert not re.search(rf"ed-train-{plugin.name}|plugins/{plugin.name}\b", text), plugin.name


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(requirement.name, []).append(requirement)
    return found


def applicable(requirements: list[Requirement], python: str) -> list[Requirement]:
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"python_version": python})]


def requirements_of(file: Path) -> list[Requirement]:
    """What `make` has to install for a pyproject.toml or a list of requirements."""
    if file.suffix == ".txt":
        lines = file.read_text().splitlines()
        return [Requirement(line) for line in lines if line and not line.startswith("#")]
    content: dict[str, Any] = tomllib.loads(file.read_text())
    return [Requirement(line) for line in content["build-system"]["requires"] + content["project"]["dependencies"]]


@pytest.mark.parametrize("file", [*PROJECTS, ROOT / "requirements-dev.txt"], ids=lambda f: str(f.relative_to(ROOT)))
def test_constraints_pin_what_is_named(file: Path) -> None:
    ours = {canonicalize_name(tomllib.loads(project.read_text())["project"]["name"]) for project in PROJECTS}
    pinned = pins()
    for python in PYTHONS:
        for requirement in applicable(requirements_of(file), python):
            name = canonicalize_name(requirement.name)
            if name in ours:
                continue
            [pin] = applicable(pinned.get(name, []), python) or [None]
            assert pin is not None, f"{requirement.name} of {file} is not in constraints.txt for Python {python}"
            [specifier] = pin.specifier
            assert specifier.version in requirement.specifier, f"{pin} does not fit {requirement} of {file}"


def test_constraints_are_exact() -> None:
    for name, requirements in pins().items():
        assert name == canonicalize_name(name)
        for requirement in requirements:
            [specifier] = requirement.specifier
            assert specifier.operator == "=="
            assert str(Version(specifier.version)) == specifier.version
        for python in PYTHONS:
            assert len(applicable(requirements, python)) == 1, f"{name}: not exactly one version for Python {python}"
