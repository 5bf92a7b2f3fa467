"""Each check of the optimizer contract fails for the plugin that breaks it, with advice, and for no other."""

from __future__ import annotations

import re

import pytest
from contract.running import checks, outcomes
from ed_train.testing import OptimizerContract

ONE_FAULT = {
    "needs_closure": ("test_takes_a_plain_step", "a backward pass and a step fail; .* needs a closure, .*no closure"),
    "calls_it_step_size": ("test_takes_a_plain_step", "has no 'lr' in its parameter groups, which schedules set"),
    "changes_types": ("test_takes_a_plain_step", "conv.weight: type from torch.float32 to torch.bfloat16; write into"),
    "draws_elsewhere": ("test_takes_a_plain_step", "two runs with the same seeds .*; draw random numbers from torch"),
    "keeps_gradients": ("test_takes_a_plain_step", r"zero_grad\(\) leaves gradients behind"),
    "thaws_biases": ("test_building_changes_nothing", "linear.bias: requires_grad from False to True: build makes"),
    "seeds": ("test_leaves_torch_as_it_is", "seeds torch's random numbers, .*; use a torch.Generator of your own"),
    "makes_torch_deterministic": ("test_leaves_torch_as_it_is", "whether torch's algorithms are deterministic for the"),
    "imports_numpy": ("test_imports_nothing_heavy", "wrong-imports imports numpy when it is loaded"),
    "library_not_required": ("test_requires_its_library", "does not depend on numpy; add it to dependencies"),
    "two_lines_of_summary": ("test_says_what_it_is", "give one line"),
    "no_paper": ("test_says_what_it_is", "give the address of the publication"),
    "unexplained": ("test_every_option_has_help", "no one line of help for lr"),
    "changeable": ("test_options_are_frozen", r"write @dataclass\(frozen=True\)"),
    "recommends_the_impossible": ("test_recommended_options_work", "momentum: got 1.5"),
    "unusual_default": ("test_usual_lr_contains_the_lr", "the default lr 0.02 lies outside usual_lr 1 to 2"),
    "usual_lr_upside_down": ("test_usual_lr_contains_the_lr", r"give \(lowest, highest\), both above 0"),
    "advice_is_text": ("test_advice_is_lines", "returned 'careful'; return a list of lines"),
    "advises_on_two_schedules": ("test_advice_is_lines", "fails for .*'constant_with_warmup'.*KeyError"),
    "slow_on_no_device": ("test_devices_are_known_and_work", "'gpu' in devices or slow_on is no device type"),
    "state_twice_as_large": ("test_state_bytes_are_right", "but the state has .* bytes after two steps"),
    "state_forgets_momentum": ("test_state_bytes_are_right", r"with {.*'momentum': 0.*the state has 0 bytes"),
    "defaults_refused": ("test_builds_from_its_defaults", "without options does not work .*no defaults"),
    "printing": ("test_building_prints_nothing", r"building prints 'hello\\n'"),
    "option_ignored": ("test_every_option_reaches_the_optimizer", r"\n  nesterov: nothing changes with True\n"),
    "option_in_groups_alone": ("test_every_option_reaches_the_optimizer", r"\n  momentum: nothing changes with 0.45"),
    "rounded": ("test_every_option_reaches_the_optimizer", "momentum: 0.45 arrives as 0.5; hand it on as it is"),
    "half_the_lr": ("test_every_option_reaches_the_optimizer", "lr: 0.02 arrives as 0.01; hand it on as it is"),
    "right_with_text": ("test_every_option_reaches_the_optimizer", "direction: its type does not say .*other_values ="),
    "zero_replaced": ("test_an_explicit_zero_is_kept", "momentum=0 gives the same optimizer as the default 0.9"),
    "unbounded": ("test_unknown_and_out_of_range_options_are_refused", "lr=-1.0 gets past .* give the type a range"),
    "reading_tensors": ("test_accepts_parameters_groups_and_names", "named parameters: hand params on .* as they come"),
    "flattening": ("test_accepts_parameters_groups_and_names", "groups: 2 groups became 1"),
    "first_group_for_all": (
        "test_groups_have_options_of_their_own",
        "lr=0.0066.* in the second .*; read group.'lr'",
    ),
    "upwards": ("test_lowers_a_loss", "the loss goes from .* in 30 steps, not below"),
    "leaves_biases_out": ("test_lowers_a_loss", "conv.bias, linear.bias got gradients in 30 steps and did not change"),
    "schedules_itself": ("test_follows_a_learning_rate_schedule", "steps change lr in the groups from .0.02. to .0.01"),
    "decays_frozen": ("test_frozen_parameters_stay", "that does not require a gradient changes; skip parameters"),
    "forgets_schedules": ("test_follows_a_learning_rate_schedule", "a schedule changes nothing; read group"),
    "fails_at_zero": ("test_a_learning_rate_of_zero_works", "say lr_may_be_zero=False .ZeroDivisionError"),
    "needlessly_above_zero": ("test_a_learning_rate_of_zero_works", "leave lr_may_be_zero=False out"),
    "refuses_small_gradients": ("test_works_with_gradient_clipping", "clip_grad_norm_.* fails .*have vanished"),
    "last_gradient_only": ("test_works_with_gradient_accumulation", "differ from one of the whole"),
    "couples_parameters": ("test_steps_parameter_by_parameter", "differ by .* from steps over all; .* leave per_param"),
    "normalizes_each": ("test_steps_shard_by_shard", "steps over halves of tensors differ .*; say shardable=False"),
    "closure_without_gradients": (
        "test_accepts_a_closure",
        r"step\(closure\) fails; call closure\(\) under",
    ),
    "divides_by_gradient": ("test_a_gradient_of_zeros_does_no_harm", "not finite; add epsilon where the size"),
    "claims_to_unscale": ("test_works_with_a_gradient_scaler", "declare _step_supports_amp_scaling only if"),
    "claims_to_unscale_little": ("test_works_with_a_gradient_scaler", "declare _step_supports_amp_scaling only if"),
    "never_skips": ("test_works_with_a_gradient_scaler", "a step that torch.amp.GradScaler skips, .* changes weights"),
    "loads_only_after_steps": ("test_works_with_accelerate", "training after Accelerator.prepare.* fails"),
    "loads_without_momentum": ("test_works_with_accelerate", "differs from training without it; it calls"),
    "float32_only": ("test_trains_bfloat16_parameters", "a step over bfloat16 parameters fails; compute in float32"),
    "casts_to_float32": ("test_trains_bfloat16_parameters", "bfloat16 parameters have another type after a step"),
    "views_as_one_row": ("test_trains_channels_last_parameters", "use reshape or flatten instead of view"),
    "pairs_by_storage": ("test_trains_channels_last_parameters", "never pair them by their storage"),
    "pairs_by_storage_in_small_steps": ("test_trains_channels_last_parameters", "never pair them by their storage"),
    "keeps_an_object": ("test_state_survives_a_file", "keep nothing in it but tensors"),
    "remembers_lr": ("test_resume_equals_the_uninterrupted_run", "keep everything that steps depend on in self.state"),
    "no_step_size": ("test_effective_lr_is_a_step_size", "learning_rate_free needs an effective_lr"),
    "lr_is_no_step_size": ("test_effective_lr_is_a_step_size", r"returns lr itself \(0.02\)"),
    "step_size_is_text": ("test_effective_lr_is_a_step_size", "returned '0.02'; return a finite float above 0"),
    "switches_in_secret": ("test_schedule_free_is_declared", "say schedule_free=True"),
    "does_not_switch": ("test_schedule_free_is_declared", r"no train\(\) and eval\(\); leave it out"),
    "switches_nothing": ("test_schedule_free_is_declared", r"but eval\(\) changes no weight"),
}
"""Optimizer to the one check that it fails, and what the failure says."""

OPTIONS = {"defaults_refused": {"lr": 0.05}}

SEVERAL_FAULTS = {
    "decays_always": {"test_every_option_reaches_the_optimizer", "test_groups_have_options_of_their_own"},
    "untyped": {"test_every_option_reaches_the_optimizer", "test_unknown_and_out_of_range_options_are_refused"},
    "gradients_of_backward": {"test_works_with_gradient_clipping", "test_works_with_a_gradient_scaler"},
    "keeps_double": {"test_state_survives_a_file", "test_resume_equals_the_uninterrupted_run"},
    "momentum_elsewhere": {"test_state_survives_a_file", "test_resume_equals_the_uninterrupted_run"},
}


@pytest.mark.parametrize("name", ONE_FAULT)
def test_a_wrong_optimizer_fails_its_check_and_no_other(name: str) -> None:
    check, advice = ONE_FAULT[name]
    failed, _ = outcomes(OptimizerContract, name=name, options=OPTIONS.get(name, {}))
    assert list(failed) == [check], failed
    assert re.match(f"AssertionError: .*{advice}", failed[check], re.DOTALL), failed


@pytest.mark.parametrize("name", SEVERAL_FAULTS)
def test_a_fault_of_several_consequences_fails_each_of_them(name: str) -> None:
    failed, _ = outcomes(OptimizerContract, name=name)
    assert set(failed) == SEVERAL_FAULTS[name], failed
    assert all(text.startswith("AssertionError: ") for text in failed.values())
    assert all(("load_state_dict() casts" in text) == (name == "keeps_double") for text in failed.values())


def test_every_check_has_an_optimizer_that_fails_it_alone() -> None:
    assert {check for check, _ in ONE_FAULT.values()} == set(checks(OptimizerContract))


def test_every_wrong_optimizer_is_tested() -> None:
    from ed_train.api import installed_plugins

    offered = {o.spec.name for o in installed_plugins() if o.distribution.startswith("wrong-")}
    assert offered == {*ONE_FAULT, *SEVERAL_FAULTS, *RIGHT, "elsewhere"}


RIGHT = ("right", "right_schedule_free", "right_and_takes_its_config_apart")


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_optimizer_passes_everything(name: str) -> None:
    failed, skipped = outcomes(OptimizerContract, name=name)
    assert failed == {}
    nothing_declared = {"test_recommended_options_work"}
    if name != "right":
        nothing_declared |= {
            "test_usual_lr_contains_the_lr", "test_advice_is_lines", "test_steps_parameter_by_parameter",
        }  # fmt: skip
    if name == "right_and_takes_its_config_apart":
        nothing_declared |= {"test_state_bytes_are_right", "test_steps_shard_by_shard"}
    assert set(skipped) == nothing_declared


def test_another_value_can_be_named_for_an_option_whose_type_says_nothing() -> None:
    failed, _ = outcomes(OptimizerContract, name="right_with_text", other_values={"direction": "up"})
    assert failed == {}


def test_where_no_device_fits_training_is_skipped_with_the_reason() -> None:
    failed, skipped = outcomes(OptimizerContract, name="elsewhere")
    assert failed == {}
    assert skipped["test_lowers_a_loss"] == "elsewhere needs xpu, which this machine has not"
    assert skipped["test_devices_are_known_and_work"] == "this machine has no xpu to step on"
    failed, skipped = outcomes(OptimizerContract, name="elsewhere", device_type="cpu")
    assert failed == {}
    assert "test_lowers_a_loss" not in skipped


def test_options_and_the_wanted_loss_count() -> None:
    slow = outcomes(OptimizerContract, name="right", options={"lr": 1e-6}, loss_factor=0.5)[0]
    assert list(slow) == ["test_lowers_a_loss"]
    assert outcomes(OptimizerContract, name="right", options={"lr": 0.1}, loss_factor=0.5)[0] == {}


def test_an_optimizer_that_is_not_installed() -> None:
    failed, _ = outcomes(OptimizerContract, name="nowhere")
    assert set(failed) == set(checks(OptimizerContract))
    assert all("name = 'nowhere' finds no optimizer; is the plugin installed" in text for text in failed.values())
