"""Bare state dicts of other trainers: what is this optimizer's is loaded, whoever saved it; anything else is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import lion_pytorch
import prodigyopt
import pytest
import torch
from ed_train.train.components import TrainedComponent
from ed_train.train.foreign_state import load_foreign_state
from ed_train.train.state import OPTIMIZER_FILES


def trained(component: TrainedComponent, build: Callable[[Any], torch.optim.Optimizer]) -> dict[str, Any]:
    """The state dict that a training loop would save: of an optimizer over the same parameters, after two steps."""
    named = [(name, torch.nn.Parameter(p.detach().clone())) for name, p in component.named_parameters()]
    optimizer = build(named)
    for _ in range(2):
        for _, parameter in named:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return optimizer.state_dict()


def plain(build: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda named: build([p for _, p in named], **options)


@pytest.fixture
def load(make_session, write_optimizer, tmp_path) -> Callable[..., tuple[str, TrainedComponent]]:
    """``load(state, optimizer)``: what is said about a file with this content, and the component after that."""
    components: dict[str, TrainedComponent] = {}

    def component_of(optimizer: str) -> TrainedComponent:
        if optimizer not in components:
            write_optimizer({"base": {"optimizer": optimizer}, "text_encoder_freezing": {"unfreeze_last_n_layers": 2}})
            components[optimizer] = make_session().components[1]
        return components[optimizer]

    def run(state: Any, optimizer: str = "adamw") -> tuple[str, TrainedComponent]:
        component = component_of(optimizer)
        component.optimizer.state.clear()
        path = tmp_path / OPTIMIZER_FILES[component.name]
        if isinstance(state, Path):
            path.unlink()
            path.symlink_to(state)
        else:
            torch.save(state(component) if callable(state) else state, path)
        return load_foreign_state(component, tmp_path, None), component

    return run


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    """As an older version of a library saves it."""

    def change(state: dict[str, Any]) -> None:
        for key in keys:
            del state["param_groups"][0][key]

    return change


def with_switches(state: dict[str, Any]) -> None:
    state["param_groups"][0].update(maximize=True, capturable=True, foreach=True, fused=None)


def unchanged(_: dict[str, Any]) -> None:
    pass


def test_the_state_of_the_same_optimizer_is_loaded_whatever_its_version(load) -> None:
    adamw, bnb, prodigy = plain(torch.optim.AdamW), plain(bitsandbytes.optim.AdamW8bit), plain(prodigyopt.Prodigy)
    for optimizer, build, change in (
        ("adamw", adamw, unchanged),
        ("adamw", adamw, without("decoupled_weight_decay")),
        ("adamw", adamw, with_switches),
        ("adamw", plain(torch.optim.AdamW, fused=True), unchanged),
        ("lion", plain(lion_pytorch.Lion), unchanged),
        ("prodigy", prodigy, unchanged),
        ("prodigy", prodigy, without("slice_p", "d_hat", "d_denom")),
        ("adamw8bit", bnb, unchanged),
        ("adamw8bit", bnb, without("alpha", "t_alpha", "t_beta3")),
    ):

        def saved(component: TrainedComponent, build: Any = build, change: Any = change) -> dict[str, Any]:
            state = trained(component, build)
            change(state)
            return state

        line, component = load(saved, optimizer)
        total = len(component.parameters)
        assert f"text_encoder: optimizer state of {total} tensors loaded from" in line, (optimizer, change)
        for parameter in component.parameters:
            parameter.grad = torch.zeros_like(parameter)
        component.optimizer.step()
        assert len(component.optimizer.state) == total
        assert not component.optimizer.param_groups[0].get("maximize")


def test_a_state_saved_with_names_is_taken_by_name(load) -> None:
    def reordered(component: TrainedComponent) -> dict[str, Any]:
        return trained(component, lambda named: torch.optim.AdamW([(n, p) for n, p in reversed(named)]))

    line, component = load(reordered)
    assert "tensors loaded from" in line
    for parameter in component.parameters:
        assert component.optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    line, _ = load(lambda c: trained(c, lambda named: torch.optim.AdamW([(f"x.{n}", p) for n, p in named])))
    assert "it names other parameters than those that train" in line


def swap(state: dict[str, Any]) -> None:
    """Two parameters of one dimension and of different length."""
    one = [n for n, s in state["state"].items() if s["exp_avg"].dim() == 1]
    other = next(n for n in one if len(state["state"][n]["exp_avg"]) != len(state["state"][one[0]]["exp_avg"]))
    state["state"][one[0]], state["state"][other] = state["state"][other], state["state"][one[0]]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "two of another length": (swap, "other parameters, or another order"),
    "a NaN": (lambda s: s["state"][3]["exp_avg"].view(-1)[:1].fill_(torch.nan), "exp_avg of parameter 3 ("),
    "an infinite step": (lambda s: s["state"][3].update(step=torch.tensor(torch.inf)), "is not finite"),
    "a NaN in the group": (lambda s: s["param_groups"][0].update(eps=float("nan")), "eps of its group is NaN"),
    "no second moment": (lambda s: s["state"][3].pop("exp_avg_sq"), "it has exp_avg, step"),
    "text for a moment": (lambda s: s["state"][3].update(exp_avg="text"), "is no tensor of numbers"),
    "complex numbers": (lambda s: s["state"][3].update(exp_avg=torch.ones(2) * 1j), "is no tensor of numbers"),
    "a number for a state": (lambda s: s["state"].update({3: 5}), "parameters are numbers, each with a state"),
    "names for numbers": (lambda s: s.update(state={str(k): v for k, v in s["state"].items()}), "none of its groups"),
    "groups by name": (lambda s: s.update(param_groups={"a": s["param_groups"]}), "no state dict of an optimizer"),
    "a number for a group": (lambda s: s.update(param_groups=[5]), "parameters are numbers"),
    "a number for parameters": (lambda s: s["param_groups"][0].update(params=5), "parameters are numbers"),
    "lists for numbers": (lambda s: s["param_groups"][0].update(params=[[0]]), "parameters are numbers"),
    "a number twice": (lambda s: s["param_groups"][0]["params"].append(0), "parameters are numbers"),
    "of plain Adam": (lambda s: s["param_groups"][0].update(decoupled_weight_decay=False), "not the state of adamw"),
}


def test_what_does_not_fit_is_named_and_nothing_of_it_is_loaded(load, tmp_path) -> None:
    adamw: dict[str, Any] = {}

    def changed(component: TrainedComponent, change: Any) -> dict[str, Any]:
        adamw.update(adamw or trained(component, plain(torch.optim.AdamW)))
        state = copy.deepcopy(adamw)
        change(state)
        return state

    for name, (change, reason) in CHANGES.items():
        line, component = load(lambda c, change=change: changed(c, change))
        assert "is not used, its optimizer begins anew: " in line, name
        assert reason in line, name
        assert not component.optimizer.state, name
    line, _ = load(tmp_path / "gone")
    assert "is not used, its optimizer begins anew: it is no file" in line
