"""The four files in examples/ that users start from: they resolve without a word and mean what they say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ed_train.config.load import load_config
from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.registry import OptimizerRegistry

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIMIZER_FILES = ["optimizer.json", "optimizerSD21.json", "optimizer_dadapt.json"]


@pytest.fixture
def resolve_example(tmp_path: Path, registry: OptimizerRegistry, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    for name in ("train.json", *OPTIMIZER_FILES):
        shutil.copy(EXAMPLES / name, tmp_path)

    def resolve_example(**flags: str) -> RunConfig:
        return load_config({"resume_ckpt": "owner/model", **flags}, registry, tmp_path / "train.json")

    return resolve_example


def test_there_are_no_other_json_files_to_copy() -> None:
    others = ["train.json", "sample_prompts.json", "validation.json"]
    assert sorted(p.name for p in EXAMPLES.glob("*.json")) == sorted([*others, *OPTIMIZER_FILES])


@pytest.mark.parametrize("name", OPTIMIZER_FILES)
def test_resolves_without_a_note_but_those_that_are_due(name, resolve_example) -> None:
    notes = resolve_example(optimizer_config=name).notes
    # train.json has a schedule for those who use no optimizer.json
    assert [note for note in notes if "overrides lr_scheduler=" not in note] == []


def test_train_json(resolve_example) -> None:
    run = resolve_example()
    train = run.train
    assert (train.batch_size, train.resolution, train.max_epochs, train.seed) == (10, 512, 30, 555)
    assert (train.lr, train.clip_grad_norm, train.min_snr_gamma) == (None, None, None)
    assert (train.sample_steps, train.save_every_n_epochs, train.zero_frequency_noise_ratio) == (300, 20, 0.02)
    assert train.gradient_checkpointing
    assert run.sources["optimizer_config"].startswith("train.json:")


def test_optimizer_json(resolve_example) -> None:
    run = resolve_example()
    unet, text_encoder = run.components[UNET], run.components[TEXT_ENCODER]
    assert {c.optimizer.spec.name for c in run.components.values()} == {"adamw8bit"}
    assert (unet.options.lr, text_encoder.options.lr) == (1e-6, 5e-7)
    assert (unet.lr_scheduler, text_encoder.lr_scheduler) == ("constant", "cosine")
    for component in (unet, text_encoder):
        assert component.options.betas == (0.9, 0.999)
        assert component.options.epsilon == 1e-8
        assert component.options.weight_decay == 0.01
        assert component.lr_warmup_steps is None
    assert run.grad_scaler_tweaks
    assert run.freezing[0].options.trained_layers is None


def test_optimizer_sd21_json_is_optimizer_json_with_the_last_two_layers(resolve_example) -> None:
    run, plain = resolve_example(optimizer_config="optimizerSD21.json"), resolve_example()
    assert run.freezing[0].options.trained_layers == 2
    for name in (UNET, TEXT_ENCODER):
        assert run.components[name].options == plain.components[name].options
        assert run.components[name].lr_scheduler == plain.components[name].lr_scheduler


def test_optimizer_dadapt_json(resolve_example) -> None:
    run = resolve_example(optimizer_config="optimizer_dadapt.json")
    unet, text_encoder = run.components[UNET].options, run.components[TEXT_ENCODER].options
    assert {c.optimizer.spec.name for c in run.components.values()} == {"dadapt_adam"}
    assert (unet.lr, text_encoder.lr) == (1.0, 0.5)
    for options in (unet, text_encoder):
        assert (options.weight_decay, options.d0, options.decouple) == (0.8, 1e-6, True)
        assert options.growth_rate is None
        assert options.use_bias_correction is False
