"""Freezing, optimizers and schedules of the components."""

from __future__ import annotations

import math

import pytest
import torch
from ed_train.config.optimizer_file import OptimizerFileResolver
from ed_train.config.run import ComponentConfig
from ed_train.config.train_keys import TrainConfig
from ed_train.errors import ConfigError
from ed_train.registry import load_registry
from ed_train.train.components import build_component, decay_and_warmup_steps, schedule_notes
from ed_train.train.precision import SCALER_SETTINGS, tweak_scaler


def unet_config(**base: object) -> ComponentConfig:
    from pathlib import Path

    from ed_train.config.jsontext import Document

    resolver = OptimizerFileResolver(Document(Path("o.json"), {"base": base}), TrainConfig(), {}, load_registry())
    config = resolver.resolve().components["unet"]
    assert resolver.problems == []
    return config


def lrs(config: ComponentConfig, steps: int, total: int) -> list[float]:
    """The lr of every optimizer step, as the loop would use it."""
    module = torch.nn.Linear(2, 2)
    component = build_component(config, module, total)
    seen = []
    for _ in range(steps):
        module(torch.ones(1, 2)).sum().backward()
        seen.append(component.lr)
        component.optimizer.step()
        component.lr_scheduler.step()
    return seen


def test_decay_defaults_to_one_and_a_half_runs_and_warmup_to_two_percent() -> None:
    config = unet_config(optimizer="adamw", lr_scheduler="cosine")
    assert decay_and_warmup_steps(config, 1000) == (1500, 30)
    assert decay_and_warmup_steps(unet_config(lr_decay_steps=0), 100) == (150, 3)
    assert decay_and_warmup_steps(unet_config(lr_decay_steps=200), 1000) == (200, 4)


def test_an_explicit_warmup_of_zero_is_zero() -> None:
    config = unet_config(optimizer="adamw", lr=1e-3, lr_scheduler="cosine", lr_warmup_steps=0)
    assert decay_and_warmup_steps(config, 1000)[1] == 0
    assert lrs(config, 1, 1000) == [1e-3]


def test_a_cosine_ends_near_a_quarter_of_its_peak() -> None:
    seen = lrs(unet_config(optimizer="adamw", lr=1e-3, lr_scheduler="cosine"), 200, 200)
    assert max(seen) == pytest.approx(1e-3, rel=1e-2)
    assert seen[-1] == pytest.approx(0.25e-3, rel=0.1)


def test_schedules_count_optimizer_steps_not_batches() -> None:
    """The original counted every batch, whatever grad_accum said."""
    config = unet_config(optimizer="adamw", lr=1.0, lr_scheduler="linear", lr_decay_steps=10, lr_warmup_steps=0)
    assert lrs(config, 10, 10) == pytest.approx([1 - step / 10 for step in range(10)])


@pytest.mark.parametrize("name", [o.spec.name for o in load_registry() if "cuda" not in o.spec.devices])
@pytest.mark.parametrize(
    "schedule", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
)
def test_every_optimizer_steps_under_every_schedule(name: str, schedule: str) -> None:
    seen = lrs(unet_config(optimizer=name, lr_scheduler=schedule, lr_warmup_steps=3), 12, 10)
    assert all(math.isfinite(lr) for lr in seen)
    if schedule == "constant_with_warmup":
        assert seen[5] == seen[11] > seen[1]


def test_dadapt_sgd_starts_its_warmup_above_zero_and_says_so() -> None:
    config = unet_config(optimizer="dadapt_sgd", lr_scheduler="constant_with_warmup", lr_warmup_steps=4)
    assert lrs(config, 6, 100) == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert "dadapt_sgd cannot step at lr 0" in " ".join(schedule_notes(config, 100))


def test_dadapt_sgd_survives_the_end_of_a_decay() -> None:
    config = unet_config(optimizer="dadapt_sgd", lr_scheduler="linear", lr_decay_steps=4, lr_warmup_steps=0)
    assert lrs(config, 6, 6) == pytest.approx([1.0, 0.75, 0.5, 0.25, 1e-6, 1e-6])


def test_polynomial_with_lions_small_lr() -> None:
    seen = lrs(unet_config(optimizer="lion", lr=1e-7, lr_scheduler="polynomial", lr_warmup_steps=0), 10, 10)
    assert seen[0] == 1e-7
    assert 1e-8 < seen[-1] < 1e-7


@pytest.mark.parametrize(("warmup", "decay"), [(0, 10), (3, 10), (2, 3), (0, 1)])
def test_polynomial_is_that_of_diffusers(warmup: int, decay: int) -> None:
    from diffusers.optimization import get_polynomial_decay_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    theirs = get_polynomial_decay_schedule_with_warmup(optimizer, warmup, decay).lr_lambdas[0]
    options = {"lr": 1e-5, "lr_scheduler": "polynomial", "lr_warmup_steps": warmup, "lr_decay_steps": decay}
    assert lrs(unet_config(optimizer="adamw", **options), 13, 13) == pytest.approx(
        [1e-5 * theirs(n) for n in range(13)]
    )


def test_polynomial_where_there_is_nothing_to_decay() -> None:
    options = {"optimizer": "adamw", "lr_scheduler": "polynomial"}
    assert lrs(unet_config(lr=0.0, **options), 3, 10) == [0, 0, 0]
    seen = lrs(unet_config(lr=1e-6, lr_warmup_steps=2, lr_decay_steps=2, **options), 4, 4)
    assert seen == pytest.approx([0, 5e-7, 1e-7, 1e-7])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_decay_steps": 50}, "base.lr_decay_steps has no effect with lr_scheduler constant, which has no decay"),
        (
            {"lr_decay_steps": 500, "lr_warmup_steps": 3, "lr_scheduler": "constant_with_warmup"},
            "has no effect with lr_scheduler constant_with_warmup, which has no decay",
        ),
        (
            {"lr_decay_steps": 50, "lr_scheduler": "cosine"},
            "50 is less than this run's 100 optimizer steps: after them, the lr of cosine rises again",
        ),
        ({"lr_decay_steps": 99, "lr_scheduler": "linear"}, "after them, the lr of linear is 0"),
    ],
)
def test_notes_on_decays_that_do_nothing_or_end_early(options: dict[str, object], expected: str) -> None:
    (note,) = schedule_notes(unet_config(**options), 100)
    assert expected in note


def test_the_lr_after_an_early_end_is_as_the_notes_say() -> None:
    for schedule, lr in (("linear", 0), ("cosine_with_restarts", 0), ("polynomial", 1e-7)):
        config = unet_config(optimizer="adamw", lr=1e-6, lr_scheduler=schedule, lr_decay_steps=4, lr_warmup_steps=0)
        assert lrs(config, 8, 8)[4:] == pytest.approx([lr] * 4)
    config = unet_config(optimizer="adamw", lr=1e-6, lr_scheduler="cosine", lr_decay_steps=4, lr_warmup_steps=0)
    assert lrs(config, 8, 8)[4] < 1e-9 < 1e-7 < lrs(config, 8, 8)[6]


def test_decays_that_do_what_they_say_get_no_note() -> None:
    assert schedule_notes(unet_config(lr_decay_steps=0), 100) == []
    assert schedule_notes(unet_config(lr_decay_steps=100, lr_scheduler="cosine"), 100) == []
    assert schedule_notes(unet_config(lr_decay_steps=50, lr_scheduler="constant_with_warmup"), 100) == []


def test_notes_on_warmups_that_do_nothing_or_never_end() -> None:
    (note,) = schedule_notes(unet_config(lr_warmup_steps=5), 100)
    assert "no effect with lr_scheduler constant" in note
    (note,) = schedule_notes(unet_config(lr_scheduler="cosine", lr_warmup_steps=500), 100)
    assert "lr_warmup_steps 500 is more than this run's 100 optimizer steps" in note


def test_effective_lr_of_a_learning_rate_free_optimizer_is_d_times_lr() -> None:
    config = unet_config(optimizer="dadapt_adam", lr=0.5, d0=1e-4)
    component = build_component(config, torch.nn.Linear(2, 2), 10)
    assert component.lr == 0.5
    assert component.effective_lr == pytest.approx(0.5e-4)


def test_freezing_everything_is_an_error(make_session, write_optimizer) -> None:
    section = {"unfreeze_last_n_layers": 0, "freeze_final_layer_norm": True}
    write_optimizer({"base": {"optimizer": "adamw"}, "text_encoder_freezing": section})
    with pytest.raises(ConfigError, match=r"optimizer\.json:1: text_encoder_freezing: freezes every parameter"):
        make_session()


def test_a_unet_rule_that_matches_nothing_is_an_error(make_session, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}, "unet_freezing": ["freeze *", "unfreeze *atn2*"]})
    with pytest.raises(ConfigError, match=r"unet_freezing: .*\*atn2\*"):
        make_session()


def test_unet_rules_in_order_the_last_match_wins(make_session, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "adamw"}, "unet_freezing": ["freeze *", "unfreeze *attn2*"]})
    session = make_session()
    trained = session.components[0].parameter_names
    assert trained
    assert all("attn2" in name for name in trained)


def test_a_gpu_optimizer_on_a_cpu_is_refused_by_name(make_session, write_optimizer) -> None:
    write_optimizer({"base": {"optimizer": "paged_adamw8bit"}})
    with pytest.raises(ConfigError, match="paged_adamw8bit runs on cuda only, and this run is on cpu"):
        make_session()


def test_scaler_tweaks_follow_the_step() -> None:
    scaler = torch.amp.GradScaler("cpu", **SCALER_SETTINGS)
    seen = {}
    for step in (1, 499, 500, 1000, 2000, 4000, 9000):
        tweak_scaler(scaler, step)
        seen[step] = (scaler.get_growth_factor(), scaler.get_growth_interval())
    assert seen == {
        1: (2.0, 25), 499: (2.0, 25), 500: (1.8, 100), 1000: (1.6, 200), 2000: (1.3, 500), 4000: (1.15, 2000),
        9000: (1.15, 2000),
    }  # fmt: skip
