"""Each check of the freeze contract fails for the policy that breaks it, with advice, and for no other."""

from __future__ import annotations

import re

import pytest
from contract.running import checks, outcomes
from ed_train.testing import FreezePolicyContract

ONE_FAULT = {
    "importing_numpy": ("test_imports_nothing_heavy", "wrong-imports imports numpy when it is loaded"),
    "requiring_nothing": ("test_requires_ed_train", "wrong-requirements does not depend on ed-train"),
    "two_lines": ("test_says_what_it_is", "give one line"),
    "unexplained_policy": ("test_every_option_has_help", "no one line of help for layers"),
    "changeable_policy": ("test_options_are_frozen", r"write @dataclass\(frozen=True\)"),
    "untyped_policy": ("test_unknown_and_out_of_range_options_are_refused", "is accepted: give the option a type"),
    "freezing_by_default": ("test_default_settings_freeze_nothing", "an empty section freezes encoder.layers.0"),
    "freezing_nothing": ("test_settings_freeze_something", "'layers': 1} every parameter still has requires_grad"),
    "returning_other_names": ("test_returns_the_names_of_what_it_froze", "they differ in encoder.layers.0"),
    "refusing_an_empty_section": (
        "test_default_settings_freeze_nothing",
        "refuses an empty section, .*nothing to",
    ),
    "returning_nothing": ("test_returns_the_names_of_what_it_froze", "apply returned 0 names and froze 16 parameters"),
    "switching_modes": ("test_changes_nothing_else", "apply changes training of the model, .*; call requires_grad_"),
    "printing_names": ("test_applying_prints_nothing", "apply prints 'encoder.layers.0.*leave it out"),
    "freezing_everything": ("test_leaves_something_to_train", "leaves nothing to train"),
    "unfreezing": ("test_never_unfreezes", r"call requires_grad_\(False\) only, never True"),
    "clearing_weights": ("test_leaves_the_weights_alone", r"apply changes encoder.layers.0"),
    "freezing_the_next": ("test_applying_twice_changes_nothing_more", "applied again, it freezes"),
    "running_without_a_graph": ("test_the_model_still_trains", "cannot be trained after apply"),
    "freezing_by_value": ("test_works_on_the_meta_device", "choose by names and shapes"),
    "returning_names_twice": ("test_returns_the_names_of_what_it_froze", "each once; they differ in encoder.layers.0"),
    "freezing_norms_if_there_are_any": (
        "test_a_module_that_does_not_fit_is_a_value_error",
        "for a Linear .* freezes nothing, and nobody would know; raise ValueError",
    ),
    "trusting_the_module": ("test_a_module_that_does_not_fit_is_a_value_error", "for a Linear apply raises Attribute"),
}
"""Section to the one check that its policy fails, and what the failure says."""

SETTINGS = {"layers": 1}


@pytest.mark.parametrize("section", ONE_FAULT)
def test_a_wrong_policy_fails_its_check_and_no_other(section: str) -> None:
    check, advice = ONE_FAULT[section]
    failed, _ = outcomes(FreezePolicyContract, section=section, settings=SETTINGS)
    assert list(failed) == [check], failed
    assert re.match(f"AssertionError: .*{advice}", failed[check], re.DOTALL), failed


def test_every_check_has_a_policy_that_fails_it_alone() -> None:
    assert {check for check, _ in ONE_FAULT.values()} == set(checks(FreezePolicyContract))


def test_every_wrong_policy_is_tested() -> None:
    from ed_train.api import installed_plugins

    offered = {p.policy.section for p in installed_plugins().freeze_policies if p.distribution.startswith("wrong-")}
    assert offered == {*ONE_FAULT, "right_policy"}


@pytest.mark.parametrize("settings", [SETTINGS, {}])
def test_a_right_policy_passes_everything(settings: dict[str, object]) -> None:
    assert outcomes(FreezePolicyContract, section="right_policy", settings=settings) == ({}, {})


def test_a_policy_that_freezes_by_default_says_so() -> None:
    settings = {"section": "freezing_by_default", "settings": SETTINGS}
    assert outcomes(FreezePolicyContract, **settings, freezes_by_default=True) == ({}, {})
    failed, _ = outcomes(FreezePolicyContract, section="right_policy", settings=SETTINGS, freezes_by_default=True)
    assert list(failed) == ["test_default_settings_freeze_nothing"]


def test_without_settings_that_freeze_something_checks_are_skipped_with_the_reason() -> None:
    failed, skipped = outcomes(FreezePolicyContract, section="unet_freezing")
    assert list(failed) == ["test_settings_freeze_something"]
    assert set(skipped.values()) == {"no settings are known that freeze something; set settings = {...}"}
    assert "test_never_unfreezes" in skipped


def test_settings_that_are_not_valid() -> None:
    failed, _ = outcomes(FreezePolicyContract, section="right_policy", settings={"layers": -1})
    assert "test_never_unfreezes" in failed
    assert all("settings = {'layers': -1} are not valid: layers: got -1" in text for text in failed.values())


def test_a_section_that_is_not_installed() -> None:
    failed, _ = outcomes(FreezePolicyContract, section="nowhere")
    assert set(failed) == set(checks(FreezePolicyContract))
    assert all("section = 'nowhere' finds no freeze policy; is the plugin installed" in t for t in failed.values())
