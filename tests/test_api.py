"""The library interface: plain torch optimizers by name, for a training loop of one's own."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from ed_train import ConfigError, api, create_optimizer, list_optimizers
from ed_train.registry import OptimizerRegistry
from torch import nn

NINE = [
    "adamw", "adamw8bit", "dadapt_adam", "dadapt_adan", "dadapt_lion", "dadapt_sgd", "lion", "lion8bit", "prodigy",
]  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def message(*args, **options) -> str:
    with pytest.raises(ConfigError) as error:
        create_optimizer(*args, **options)
    return str(error.value)


def held(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def test_list_optimizers_has_the_nine_names_sorted() -> None:
    assert list_optimizers() == sorted(list_optimizers())
    assert set(list_optimizers()) >= set(NINE)


def test_the_result_is_the_librarys_optimizer_itself(model) -> None:
    from prodigyopt import Prodigy

    assert type(create_optimizer("adamw", model.parameters())) is torch.optim.AdamW
    assert isinstance(create_optimizer("prodigy", model.parameters()), Prodigy)
    assert type(create_optimizer("prodigy", model.parameters(), implementation="reference")) is Prodigy


def test_the_familys_defaults_and_the_given_options(model) -> None:
    group = create_optimizer("prodigy", model.parameters(), weight_decay=0.01).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["d0"], group["decouple"]) == (1.0, 0.01, 1e-6, True)
    assert (group["use_bias_correction"], group["safeguard_warmup"]) == (True, True)
    assert create_optimizer("lion", model.parameters()).param_groups[0]["lr"] == 1e-7


def test_epsilon_is_the_name_of_eps(model) -> None:
    assert create_optimizer("adamw", model.parameters(), epsilon=1e-6).param_groups[0]["eps"] == 1e-6
    assert "eps: unknown key; did you mean 'epsilon'?" in message("adamw", model.parameters(), eps=1e-6)


def test_betas_may_be_a_list(model) -> None:
    betas = [0.8, 0.9]
    assert tuple(create_optimizer("adamw", model.parameters(), betas=betas).param_groups[0]["betas"]) == (0.8, 0.9)
    assert betas == [0.8, 0.9]


def test_names_are_case_insensitive_and_may_have_a_distribution(model) -> None:
    for name in ("AdamW", "ed-train-adamw:adamw"):
        assert isinstance(create_optimizer(name, model.parameters()), torch.optim.AdamW)


def test_the_example_of_the_docstring(model) -> None:
    (example,) = doctest.DocTestParser().get_examples(create_optimizer.__doc__ or "")
    scope = {"create_optimizer": create_optimizer, "model": model}
    exec(example.source, scope)
    assert isinstance(scope["optimizer"], torch.optim.Optimizer)


# Forms of the parameters


@pytest.mark.parametrize("as_form", [list, tuple, iter], ids=["list", "tuple", "generator"])
def test_parameters(as_form, model) -> None:
    expected = [id(p) for p in model.parameters()]
    assert held(create_optimizer("adamw", as_form(list(model.parameters())))) == [expected]


@pytest.mark.parametrize("as_form", [list, tuple, iter], ids=["list", "tuple", "generator"])
def test_groups(as_form, model) -> None:
    first, second = model
    groups = [{"params": as_form(list(first.parameters())), "lr": 0.5}, {"params": second.weight}]
    optimizer = create_optimizer("adamw", as_form(groups), lr=0.25)
    assert held(optimizer) == [[id(p) for p in first.parameters()], [id(second.weight)]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


def test_named_parameters(model) -> None:
    optimizer = create_optimizer("adamw", model.named_parameters())
    assert held(optimizer) == [[id(p) for p in model.parameters()]]
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_groups_of_named_parameters(model) -> None:
    optimizer = create_optimizer("adamw", [{"params": layer.named_parameters()} for layer in model])
    assert held(optimizer) == [[id(p) for p in layer.parameters()] for layer in model]


def test_groups_are_not_mutated(model) -> None:
    groups = [{"params": [model[0].weight], "lr": 0.5}, {"params": [model[1].weight], "name": "mine"}]
    before = [copy.copy(group) for group in groups]
    create_optimizer("adamw", groups)
    assert [{k: id(v) if k == "params" else v for k, v in g.items()} for g in groups] == [
        {k: id(v) if k == "params" else v for k, v in g.items()} for g in before
    ]


def test_parameters_that_do_not_train_are_passed_on(model) -> None:
    model[0].requires_grad_(False)
    assert held(create_optimizer("adamw", model.parameters())) == [[id(p) for p in model.parameters()]]


@pytest.mark.parametrize("nothing", [[], (), [{"params": []}]])
def test_no_parameters(nothing) -> None:
    assert message("adamw", nothing) == "adamw: there are no parameters to optimize; is everything frozen?"


def wrong_parameters() -> dict[str, tuple[object, str]]:
    weight = nn.Parameter(torch.ones(2))
    return {
        "a tensor": (weight, "params: got a value of type Parameter; expected an iterable of parameters"),
        "a module": (nn.Linear(1, 1), "got a module, a value of type Linear"),
        "nothing": (None, "params: got a value of type NoneType"),
        "a group": ({"params": [weight]}, "params: got a value of type dict"),
        "a text": ("weight", "params: got a value of type str"),
        "a set": ({weight}, "params: got a value of type set; expected an iterable"),
        "a set in a group": ([{"params": {weight}}], "params[0]['params']: got a value of type set"),
        "a number in a list": ([weight, 3], "params: number 1 is a value of type int"),
        "names only": (["weight"], "params: number 0 is a value of type str"),
        "a group without params": ([{"param": [weight]}], "params[0]: a group without the key 'params'; its keys are"),
        "a module in a list": ([nn.Linear(1, 1)], "params: number 0 is a value of type Linear"),
        "a computed tensor": ([weight * 2], "params: number 0 is computed from other tensors"),
        "a generator that was read": (iter([]), "params: an iterator with nothing left in it; was it read before?"),
        "parameters and pairs": ([weight, ("weight", weight)], "params: numbers 0 and 1 have different forms"),
        "groups and parameters": ([{"params": [weight]}, weight], "params: numbers 0 and 1 have different forms"),
        "a mixture in a group": ([{"params": [weight, ("w", weight)]}], "params[0]['params']: numbers 0 and 1 have"),
        "whole numbers": (
            [torch.ones(3, dtype=torch.long)],
            "number 0 is of torch.int64, which has no gradient",
        ),
        "a parameter twice": ([weight, weight], "params: a parameter is given twice"),
        "a parameter in two groups": ([{"params": weight}, {"params": [weight]}], "a parameter is given twice"),
    }


@pytest.mark.parametrize("name", wrong_parameters())
def test_wrong_parameters(name) -> None:
    params, expected = wrong_parameters()[name]
    assert expected in message("adamw", params)


# Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weight_dekay": 0.1}, "adamw.weight_dekay: unknown key; did you mean 'weight_decay'?"),
        ({"lr": "1e-3"}, 'adamw.lr: got "1e-3" (string); expected a number >= 0, e.g. 1e-3 (without quotes)'),
        ({"lr": float("inf")}, "adamw.lr: got Infinity (number); expected a number >= 0"),
        ({"lr": True}, "adamw.lr: got true (boolean); expected a number >= 0"),
        ({"lr": None}, "adamw.lr: got null; expected a number >= 0"),
        ({"weight_decay": -1}, "adamw.weight_decay: got -1 (number); expected a number >= 0"),
        ({"weight_decay": float("nan")}, "adamw.weight_decay: got NaN (number); expected a number >= 0"),
        ({"betas": (0.9, 1.0)}, "adamw.betas: got [0.9, 1.0] (list); expected a list of 2 numbers >= 0 and < 1"),
        ({"betas": (0.9,)}, "adamw.betas: got [0.9] (list); expected a list of 2 numbers >= 0 and < 1"),
    ],
)
def test_wrong_options_are_explained_as_in_the_files(options, expected, model) -> None:
    assert message("adamw", model.parameters(), **options) == expected


def test_all_wrong_options_are_reported_at_once(model) -> None:
    with pytest.raises(ConfigError) as error:
        create_optimizer("adamw", model.parameters(), lr="x", betas=1, beta=2)
    assert {p.key for p in error.value.problems} == {"adamw.lr", "adamw.betas", "adamw.beta"}


def test_no_limit_of_growth(model) -> None:
    assert create_optimizer("prodigy", model.parameters(), growth_rate=None).param_groups[0]["growth_rate"] > 1e300


def test_unknown_name(model) -> None:
    text = message("adam", model.parameters())
    assert text.startswith("no installed optimizer is called 'adam'; did you mean 'adamw'? (installed: adamw,")


@pytest.mark.parametrize(("name", "example"), [(None, ""), (torch.optim.SGD, ", such as 'torch.optim.sgd:SGD'")])
def test_a_name_that_is_no_text(name, example, model) -> None:
    with pytest.raises(ConfigError, match=f"for the name of an optimizer; expected a text{example}$"):
        create_optimizer(name, model.parameters())


def test_known_name_that_is_not_installed(model, monkeypatch) -> None:
    monkeypatch.setattr(api, "installed_plugins", OptimizerRegistry)
    assert "pip install ed-train-lion" in message("lion", model.parameters())


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"weight_dekay": 0.1}, "params[0]: weight_dekay: adamw has no such option in a group; did you mean 'weight_"),
        ({"epsilon": 1e-6}, "params[0]: epsilon: adamw has no such option in a group; known are lr, betas, eps"),
        ({"weight_decay": -1}, "params[0]: weight_decay: got -1 (number); expected a number >= 0"),
        ({"lr": "1e-3"}, 'params[0]: lr: got "1e-3" (string)'),
    ],
)
def test_wrong_options_of_a_group(group, expected, model) -> None:
    assert message("adamw", [{"params": model.parameters(), **group}]).startswith(expected)


def test_zero_in_a_group_and_keys_of_the_callers_own(model) -> None:
    optimizer = create_optimizer("adamw", [{"params": model.parameters(), "weight_decay": 0, "tag": "decay"}])
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert optimizer.param_groups[0]["tag"] == "decay"


def test_effective_lr_is_d_times_lr_or_lr() -> None:
    from ed_train import effective_lr

    assert effective_lr("prodigy", {"d": 1e-4, "lr": 0.5, "use_bias_correction": False}) == 0.5e-4
    assert effective_lr("adamw", {"lr": 3e-5}) == 3e-5


def test_a_configs_warning_reaches_the_caller() -> None:
    with pytest.warns(UserWarning, match="a share per step"):
        create_optimizer("lion", [torch.nn.Parameter(torch.ones(2))], decoupled_weight_decay=True)
