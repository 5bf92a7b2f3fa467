"""Which runs a comparison has, and with which settings each."""

from __future__ import annotations

import pytest
from ed_train.commands.list_optimizers import why_unusable
from ed_train.compare.learning_rates import parse_grid
from ed_train.compare.members import with_validation
from ed_train.config.load import load_config
from ed_train.errors import ConfigError


def lrs(members) -> dict[str, dict[str, float]]:
    return {m.label: {name: c.options.lr for name, c in m.run.components.items()} for m in members}


def test_without_names_every_usable_optimizer_trains_as_its_plugin_recommends(setting) -> None:
    members = setting.members()
    assert [m.label for m in members] == [o.spec.name for o in setting.registry if not why_unusable(o)]
    for member in members:
        for component in member.run.components.values():
            for option, value in component.optimizer.spec.recommended.items():
                assert getattr(component.options, option) == value
                assert component.sources[option].startswith("recommended")
    assert any(note.startswith("left out: paged_adamw8bit: runs on cuda only") for note in setting.notes)


def test_the_configured_optimizer_keeps_its_options_and_others_take_its_lr_in_proportion(setting) -> None:
    file = setting.optimizer(
        {
            "base": {"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.5, "lr_scheduler": "cosine"},
            "text_encoder_overrides": {"lr": 1e-4},
        }
    )
    setting.flags["optimizer_config"] = str(file)
    members = setting.members("adamw", "lion", "prodigy", "adamw8bit")
    assert lrs(members) == {
        "adamw": {"unet": 3e-4, "text_encoder": 1e-4},
        "lion": {"unet": 3e-5, "text_encoder": 1e-5},
        "prodigy": {"unet": 1.0, "text_encoder": 0.333333},
        "adamw8bit": {"unet": 3e-4, "text_encoder": 1e-4},
    }
    adamw, lion, prodigy, _ = (m.main for m in members)
    assert adamw.options.weight_decay == 0.5
    assert lion.options.weight_decay == 0.1
    assert lion.sources["lr"].startswith("0.1 x that of adamw (optimizer.json:1 base.lr)")
    assert lion.sources["weight_decay"].startswith("recommended by ed-train-lion")
    assert prodigy.sources["lr"].startswith("recommended of ed-train-prodigy")
    assert {m.main.lr_scheduler for m in members} == {"cosine"}


def test_a_flag_for_the_lr_is_that_of_the_configured_optimizer(setting) -> None:
    setting.flags["lr"] = "1e-5"
    assert lrs(setting.members("adamw", "lion", "dadapt_adam")) == {
        "adamw": {"unet": 1e-5, "text_encoder": 1e-5},
        "lion": {"unet": 1e-6, "text_encoder": 1e-6},
        "dadapt_adam": {"unet": 1.0, "text_encoder": 1.0},
    }


def test_a_grid_of_learning_rates_is_for_those_that_do_not_find_theirs(setting) -> None:
    members = setting.members("adamw", "prodigy", "lion@2e-6", grid="1e-5,1e-4")
    assert [m.label for m in members] == ["adamw lr 1e-5", "adamw lr 1e-4", "prodigy", "lion lr 2e-6"]
    assert members[0].main.sources["lr"] == "--lr-grid"
    assert members[3].main.sources["lr"] == "--optimizers"
    assert [m.name for m in members] == ["adamw", "adamw", "prodigy", "lion"]


def test_a_grid_of_multiples_is_for_all(setting) -> None:
    members = setting.members("lion@1e-5", "prodigy", grid="0.5x,2x")
    assert [m.label for m in members] == ["lion lr 5e-6", "lion lr 2e-5", "prodigy lr 0.5", "prodigy lr 2"]
    assert members[0].main.sources["lr"] == "--lr-grid: 0.5 x 1e-5"


@pytest.mark.parametrize("text", ["", "1e-5,x", "0", "-1", "nan", "1e-5,2x", "1e-5,1e-5", "1e-5,0.00001", "x"])
def test_a_wrong_grid_is_refused(text) -> None:
    rates, (problem,) = parse_grid(text)
    assert rates.values == ()
    assert "expected different numbers > 0, all plain (1e-5,1e-4) or all multiples (0.3x,1x,3x)" in str(problem)


def test_an_optimizer_file_is_a_run_as_ed_train_makes_it(setting) -> None:
    content = {"base": {"optimizer": "lion", "lr": 1e-5}, "text_encoder_overrides": {"optimizer": "prodigy"}}
    file = setting.optimizer(content, "mixed.json")
    (member,) = setting.members(str(file))
    assert (member.label, member.name) == ("mixed", "lion")
    alone = load_config({**setting.flags, "optimizer_config": str(file)}, setting.registry)
    assert member.run.components == alone.components
    assert [m.label for m in setting.members(str(file), grid="1e-6,1e-7")] == ["mixed lr 1e-6", "mixed lr 1e-7"]


def test_classes_and_names_with_their_distribution(setting) -> None:
    members = setting.members("torch.optim:NAdam@1e-4", "ed-train-lion:lion", "LION@1e-5")
    assert [m.label for m in members] == ["torch.optim:NAdam lr 1e-4", "lion", "lion lr 1e-5"]


def test_another_optimizer_of_the_text_encoder_is_said_not_to_be_used(setting) -> None:
    content = {"base": {"optimizer": "adamw"}, "text_encoder_overrides": {"optimizer": "lion"}}
    setting.flags["optimizer_config"] = str(setting.optimizer(content))
    members = setting.members("adamw", "lion")
    assert [{c.optimizer.spec.name for c in m.run.components.values()} for m in members] == [{"adamw"}, {"lion"}]
    assert any("text_encoder: its own optimizer lion" in note for note in setting.notes)


def test_all_problems_of_all_names_at_once(setting) -> None:
    with pytest.raises(ConfigError) as caught:
        setting.members("adamv", "lion@fast", "missing.json", "lion", "ed-train-lion:lion")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("--optimizers: ") for line in lines)
    for text in ("did you mean 'adamw'?", "'lion@fast'", "there is no such file", "two runs called 'lion'"):
        assert sum(text in line for line in lines) == 1


def test_only_the_text_encoder_trains(setting) -> None:
    setting.flags |= {"disable_unet_training": "true", "lr": "1e-5"}
    (member,) = setting.members("lion")
    assert member.main.name == "text_encoder"
    assert lrs([member]) == {"lion": {"text_encoder": 1e-6}}


def test_what_cannot_run_here_is_a_run_that_says_why(setting) -> None:
    (member,) = setting.members("paged_lion8bit")
    if why_unusable(setting.registry.find("paged_lion8bit")):
        assert member.unusable.startswith("runs on cuda only")
    else:
        assert not member.unusable


def test_without_a_validation_file_pictures_are_held_back_and_that_is_said(setting) -> None:
    run = with_validation(setting.run)
    assert run.validation
    assert run.validation.config.names == ["val"]
    assert "15% of the pictures are held back" in run.notes[-1]


def test_a_validation_file_decides_even_to_validate_nothing(setting) -> None:
    for content, names in (({"validate_training": False}, None), ({"stabilize_training_loss": True}, ["val", "train"])):
        setting.flags["validation_config"] = str(setting.optimizer(content, "validation.json"))
        validation = with_validation(setting.run).validation
        assert (validation.config.names if validation else None) == names
