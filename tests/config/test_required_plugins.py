"""``required_plugins``: a configuration names the plugins that it was written for, and nothing else is said before."""

from __future__ import annotations

import pytest
from ed_train.registry import BrokenPlugin, OptimizerRegistry


@pytest.fixture
def odd_registry() -> OptimizerRegistry:
    broken = BrokenPlugin("x", "ed-train-broken", "1.0", "ImportError: no module")
    versions = {"ed-train-lion": "0.1.0", "ed-train-broken": "1.0", "ed-train-dev": "0.2.dev3"}
    return OptimizerRegistry(broken=(broken,), left_out=("ed-train-out",), versions=versions)


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("ed-train-foo", "the plugin ed-train-foo is required and not installed: pip install ed-train-foo"),
        ("ed-train-foo>=1", 'is required and not installed: pip install "ed-train-foo>=1"'),
        ("ed-train-lion>=0.2", 'and ed-train-lion 0.1.0 is installed: pip install "ed-train-lion>=0.2"'),
        ("ed_train_lion <0.1", "and ed-train-lion 0.1.0 is installed"),
        ("ed-train-lion~=1.0", "and ed-train-lion 0.1.0 is installed"),
        ("ed-train-broken", "is required, and it is broken: ImportError: no module"),
        ("ed-train-out", "ED_TRAIN_PLUGINS or --no-plugin leaves it out"),
        ("lion", 'got "lion"; expected the name of a distribution; did you mean ed-train-lion?'),
        ("torch>=2", "is installed, and it is no plugin of ed-train; name plugins only"),
        ("ed-train>=9", 'is required, and ed-train 0.1.0 is installed: pip install "ed-train>=9"'),
        ("a b", 'got "a b" (string); expected a distribution and a range, e.g. ed-train-lion>=0.1'),
        (3, "got 3 (number); expected a distribution and a range"),
        ("ed-train-lion>=a", 'got "ed-train-lion>=a": Invalid specifier'),
    ],
)
def test_what_is_missing_is_said_before_anything_else(requirement, message, problems, odd_registry) -> None:
    found = problems({"required_plugins": [requirement], "unknown_key": 1}, registry=odd_registry)
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith("train.json:")
    assert ": required_plugins: " in found[0]


def test_all_that_are_missing_are_listed(problems, odd_registry) -> None:
    required = ["ed-train-foo", "ed-train-lion", "ed-train-bar"]
    assert len(problems({"required_plugins": required}, registry=odd_registry)) == 2


def test_what_is_there_lets_the_run_begin(resolve) -> None:
    wanted = ["ed-train>=0.1", "ed-train-lion>=0.1", "ed-train-bnb", "ED_Train.Prodigy ~= 0.1"]
    assert resolve({"required_plugins": wanted}).train.required_plugins == tuple(wanted)


def test_development_versions_are_compared_as_pep_440_says(problems, odd_registry) -> None:
    (problem, *_) = problems({"required_plugins": ["ed-train-dev>=0.2"]}, registry=odd_registry)
    assert "ed-train-dev 0.2.dev3 is installed" in problem


def test_a_text_in_place_of_the_list(problems) -> None:
    (problem,) = problems({"required_plugins": "ed-train-lion"})
    assert 'got "ed-train-lion" (string); expected a list of texts, e.g. ["ed-train-lion>=0.1"]' in problem


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("ed-train-lion>=0.1, ed-train-bnb", ("ed-train-lion>=0.1", "ed-train-bnb")),
        ('["ed-train-lion>=0.1,<99", "ed-train-bnb"]', ("ed-train-lion>=0.1,<99", "ed-train-bnb")),
    ],
)
def test_as_a_flag_with_commas_or_as_in_the_file(flag, wanted, resolve) -> None:
    assert resolve({}, required_plugins=flag).train.required_plugins == wanted


def test_as_a_flag_that_is_no_list(problems) -> None:
    (problem, *_) = problems({}, required_plugins='["ed-train-lion"')
    assert "expected a distribution and a range, e.g. ed-train-lion>=0.1" in problem
