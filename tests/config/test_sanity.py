"""Settings that run and go wrong without an error get a line each; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass

import pytest
from ed_train import OptimizerSpec
from ed_train.config.run import TEXT_ENCODER, UNET
from ed_train.registry import OptimizerRegistry, RegisteredOptimizer
from ed_train.specs import TrainingPlan

UNET_ONLY = {"disable_textenc_training": True}


@dataclass(frozen=True)
class Config:
    lr: float = 0.5
    strange: bool = False


def registry_of(**traits: object) -> OptimizerRegistry:
    traits = {"config_type": Config, **traits}
    spec = OptimizerSpec(name="odd", summary="", build=lambda params, config: None, **traits)
    return OptimizerRegistry((RegisteredOptimizer(spec, "ed-train-odd", "2"),))


@pytest.mark.parametrize(("lr", "warned"), [(0.05, True), (0.1, False), (1, False), (1.5, True)])
def test_an_lr_beyond_the_usual(lr, warned, resolve) -> None:
    registry = registry_of(usual_lr=(0.1, 1.0), recommended={"lr": 0.3})
    run = resolve(UNET_ONLY, {"base": {"optimizer": "odd", "lr": lr}}, registry=registry)
    assert run.components[UNET].options.lr == lr
    expected = (
        f"optimizer.json:1 base.lr: lr {lr:g} is unusual for the unet: usual for odd is 0.1 to 1 (recommended: 0.3)",
    )
    assert run.notes == (expected if warned else ())


def test_the_lr_of_an_ordinary_optimizer_with_one_that_finds_its_own(resolve) -> None:
    registry = registry_of(usual_lr=(0.1, 1.0), learning_rate_free=True)
    (note,) = resolve({**UNET_ONLY, "lr": 1e-6}, {"base": {"optimizer": "odd"}}, registry=registry).notes
    assert "odd finds its own step size and scales it by lr; usual for odd is 0.1 to 1" in note


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup", "cosine", "linear"])
def test_a_decay_with_a_schedule_free_optimizer(schedule, resolve) -> None:
    odd = {"base": {"optimizer": "odd", "lr_scheduler": schedule}}
    notes = resolve(UNET_ONLY, odd, registry=registry_of(schedule_free=True)).notes
    assert resolve(UNET_ONLY, odd, registry=registry_of()).notes == ()
    expected = f"optimizer.json:1 base.lr_scheduler: lr_scheduler {schedule} is unusual for the unet: odd is schedule-"
    assert len(notes) == (schedule in ("cosine", "linear"))
    assert all(note.startswith(expected) for note in notes)


def test_lr_0_is_not_freezing(resolve) -> None:
    (note,) = resolve({}, {"text_encoder_overrides": {"lr": 0}}).notes
    assert note.startswith("optimizer.json:1 text_encoder_overrides.lr: lr 0: the text_encoder is computed in full")
    assert "disable_textenc_training leaves it as it is" in note


def test_advice_sees_options_and_plan(resolve) -> None:
    seen = []

    def advice(config: Config, plan: TrainingPlan) -> list[str]:
        seen.append((config, plan))
        return ["strange is odd"] if config.strange else []

    registry = registry_of(advice=advice)
    train = {**UNET_ONLY, "lr_scheduler": "cosine", "clip_grad_norm": 2}
    run = resolve(train, {"base": {"optimizer": "odd", "strange": True}}, registry=registry)
    assert run.notes == ("unet: odd: strange is odd",)
    assert resolve(UNET_ONLY, {"base": {"optimizer": "odd"}}, registry=registry).notes == ()
    assert seen == [
        (Config(strange=True), TrainingPlan("cosine", True, 2.0)),
        (Config(), TrainingPlan("constant", False, None)),
    ]


def test_no_warmup_where_it_is_set_to_0(resolve) -> None:
    seen = []
    registry = registry_of(advice=lambda config, plan: seen.append(plan) or [])
    base = {"optimizer": "odd", "lr_scheduler": "cosine", "lr_warmup_steps": 0}
    resolve(UNET_ONLY, {"base": base}, registry=registry)
    assert seen == [TrainingPlan("cosine", False, None)]


def test_advice_that_fails_is_a_problem_where_the_optimizer_is_named(problems) -> None:
    registry = registry_of(advice=lambda config, plan: 1 / 0)
    (problem,) = problems(UNET_ONLY, {"base": {"optimizer": "odd"}}, registry=registry)
    assert problem.startswith("optimizer.json:1: base.optimizer: ed-train-odd 2: odd's advice failed: ZeroDivision")


def test_options_that_cannot_be_checked_are_a_problem_where_the_optimizer_is_named(problems) -> None:
    odd = make_dataclass("Odd", [("lr", float, 0.5), ("set", complex, 1j)], frozen=True)
    (problem,) = problems(UNET_ONLY, {"base": {"optimizer": "odd"}}, registry=registry_of(config_type=odd))
    assert problem.startswith("optimizer.json:1: base.optimizer: the option 'set' of ")
    assert "has the type complex; expected float, int," in problem


def test_recommended_settings_and_defaults_are_not_warned_about(resolve, registry) -> None:
    for optimizer in registry:
        for options in ({}, dict(optimizer.spec.recommended)):
            name = optimizer.spec.name
            run = resolve({}, {"base": {"optimizer": name, **options}})
            assert [n for n in run.notes if "unusual" in n] == [], name
            assert run.components[TEXT_ENCODER].optimizer.spec.name == name


def test_lion_with_the_lr_of_adamw_is_warned_about(resolve) -> None:
    notes = resolve(UNET_ONLY, {"base": {"optimizer": "lion", "lr": 1e-6}}).notes
    assert any("lr 1e-06 is unusual for the unet: usual for lion is" in note for note in notes)


def test_prodigy_without_safeguard_in_a_warmup_is_warned_about(resolve) -> None:
    base = {"optimizer": "prodigy", "safeguard_warmup": False}
    notes = resolve(UNET_ONLY, {"base": {**base, "lr_scheduler": "cosine"}}).notes
    assert any("safeguard_warmup" in note for note in notes)
    assert resolve(UNET_ONLY, {"base": base}).notes == ()
